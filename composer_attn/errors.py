"""Every error and warning the package raises on its own account.

All errors derive from :class:`ComposerAttnError`, so ``except ComposerAttnError`` catches what this
package refuses and nothing else; each is also the built-in exception a caller would expect.
"""


class ComposerAttnError(Exception):
    """Base of every error this package raises."""


class ArgumentError(ComposerAttnError, ValueError):
    """An argument has a value that is not valid; the message says which values are."""


class PatternError(ArgumentError):
    """An ``include`` or ``exclude`` pattern matches no point of the model."""


class PlacementError(ArgumentError):
    """The network has no place for the attention that was asked for."""


class ModelError(ComposerAttnError, RuntimeError):
    """The model, or one of its modules, is in a state that surgery cannot work on."""


class OptimizerError(ComposerAttnError, ValueError):
    """New parameters cannot join the optimizers that were passed."""


class AttentionRemovedError(ComposerAttnError, RuntimeError):
    """Another algorithm rebuilt attended modules and dropped their attention."""


class ConfigError(ComposerAttnError, ValueError):
    """A run's YAML cannot be turned into a training run; the message lists every mistake.

    Attributes:
        mistakes: what is wrong, each an item whose ``str`` is one line of the message.
    """

    def __init__(self, *mistakes: object):
        self.mistakes = mistakes
        super().__init__("\n".join(str(mistake) for mistake in mistakes))


class NothingAttendedWarning(UserWarning):
    """A surgery found no module to attend (or none to detach), and changed nothing."""


class BackendWarning(UserWarning):
    """A backend of the passes over feature maps cannot run on this machine."""


class IdleGatesWarning(UserWarning):
    """The gates of an attention are saturated, or never move."""
