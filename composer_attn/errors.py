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


class MissingExtraError(ComposerAttnError, ImportError):
    """A library is not installed; the message names the extra of composer-attn that brings it."""


class CheckpointError(ComposerAttnError, ValueError):
    """A file of weights is refused: it names code, or holds what no checkpoint of its kind does.

    Nothing in it has run, and nothing was changed.
    """


class TornCheckpointError(CheckpointError):
    """A file of weights is cut short or damaged, as a machine that fails leaves it."""


class SaveError(ComposerAttnError, OSError):
    """A run's folder took no more: a full disk, a lost right; the last checkpoint is whole."""


class RanksError(ComposerAttnError, RuntimeError):
    """The ranks of a run are not doing the same; the message says what differs."""


class RunStoppedError(ComposerAttnError, RuntimeError):
    """A run was asked to stop, has saved where it was, and can go on from there.

    Attributes:
        signal: number of the signal that asked; 128 more is the exit code.
        folder: the save folder, which ``autoresume`` goes on in.
    """

    def __init__(self, message: str, signal: int, folder: str):
        self.signal, self.folder = signal, folder
        super().__init__(message)


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


class NothingFoldedWarning(UserWarning):
    """A network has no norm that goes into a convolution, and was not changed."""


class BackendWarning(UserWarning):
    """A backend of the passes over feature maps cannot run on this machine."""


class UntrainedAttentionWarning(UserWarning):
    """An optimizer trains a network, but not the attention that was added to it afterwards."""


class IdleGatesWarning(UserWarning):
    """The gates of an attention are saturated, or never move."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none.

    Example:
        >>> first_line(ValueError("no such file\\nlooked in ...")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return (str(error) or type(error).__name__).splitlines()[0]
