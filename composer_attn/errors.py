"""All error and warning classes of the package.

All errors derive from :class:`ComposerAttnError`, so that ``except ComposerAttnError`` catches the
errors of this package and no others; each also derives from the built-in exception that a caller
would expect.
"""

from collections.abc import Sequence


class ComposerAttnError(Exception):
    """Base class of all errors of this package."""


class ArgumentError(ComposerAttnError, ValueError):
    """An argument has an invalid value; the message states which values are valid."""


class PatternError(ArgumentError):
    """An ``include`` or ``exclude`` pattern matches no site of the model."""


class PlacementError(ArgumentError):
    """The network has no site for the requested placement."""


class ModelError(ComposerAttnError, RuntimeError):
    """The model, or one of its modules, is in a state that does not allow surgery."""


class OptimizerError(ComposerAttnError, ValueError):
    """New parameters cannot join the optimizers that were passed."""


class AttentionRemovedError(ComposerAttnError, RuntimeError):
    """Another algorithm rebuilt attended modules and dropped their attention."""


class MissingExtraError(ComposerAttnError, ImportError):
    """A library is not installed; the message names the extra of composer-attn that provides it."""


class CheckpointError(ComposerAttnError, ValueError):
    """A file of weights is rejected: it refers to code, or has invalid content.

    No code in it was run, and nothing was changed.
    """


class TornCheckpointError(CheckpointError):
    """A file of weights is truncated or corrupt, as after a crash."""


class SaveError(ComposerAttnError, OSError):
    """A run's folder is not writable (full disk, permissions); the last checkpoint is intact."""


class ExportError(ComposerAttnError, RuntimeError):
    """A network cannot be exported, or its file computes something else; no file is left."""


class RanksError(ComposerAttnError, RuntimeError):
    """The ranks of a run differ; the message states in what."""


class RunStoppedError(ComposerAttnError, RuntimeError):
    """A run was asked to stop, has saved a checkpoint, and can be resumed from it.

    Attributes:
        signal: number of the signal received; the exit code is 128 plus this number.
        folder: the save folder, from which ``autoresume`` continues.
    """

    def __init__(self, message: str, signal: int, folder: str):
        self.signal, self.folder = signal, folder
        super().__init__(message)


class ConfigError(ComposerAttnError, ValueError):
    """A run's YAML cannot be turned into a training run; the message lists every mistake.

    Attributes:
        mistakes: the mistakes, each an object whose ``str`` is one line of the message.
    """

    def __init__(self, *mistakes: object):
        self.mistakes = mistakes
        super().__init__("\n".join(str(mistake) for mistake in mistakes))


class NothingAttendedWarning(UserWarning):
    """A surgery found no module to attend (or to detach), and changed nothing."""


class NothingFoldedWarning(UserWarning):
    """A network has no norm that can be folded into a convolution, and was not changed."""


class BackendWarning(UserWarning):
    """A backend cannot run on this machine, and the reference is used instead."""


class UntrainedAttentionWarning(UserWarning):
    """An optimizer trains a network, but not the attention that was added to it afterwards."""


class IdleGatesWarning(UserWarning):
    """The gates of an attention are saturated, or do not change."""


def first_few(found: Sequence[str], separator: str = ", ", number: int = 3) -> str:
    """Join the first few of several things for a message, and count the others.

    Example:
        >>> first_few(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    left = len(found) - number
    joined = separator.join(found[:number])
    return joined if left <= 0 else f"{joined}{separator.strip(', ')} and {left} more"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none.

    Example:
        >>> first_line(ValueError("no such file\\nlooked in ...")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return (str(error) or type(error).__name__).splitlines()[0]
