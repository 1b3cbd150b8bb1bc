"""Collect all mistakes in a config, to report them at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten

from composer_attn.checks import unknown
from composer_attn.errors import ComposerAttnError, ConfigError

__all__ = ["Mistake", "at", "foreign", "unknown"]

_LONGEST = 300


@dataclass(frozen=True)
class Mistake:
    """One mistake: its key path (``''``: the whole file), and a message.

    Attributes:
        key: key path, such as ``optimizer.lr``.
        message: what is wrong, and what would be valid.
        file: the file that set the key; filled in by ``ConfigFile.located``.
    """

    key: str
    message: str
    file: str = ""

    def __str__(self) -> str:
        parts = ": ".join(part for part in (self.file, self.key, self.message) if part)
        # Text quoted from a config may contain line breaks of any kind.
        return " ".join(line for line in parts.splitlines() if line.strip())


@contextmanager
def at(key: str) -> Iterator[None]:
    """Convert any exception of a component to a mistake at a key of the config."""
    try:
        yield
    except ConfigError:
        raise
    except ComposerAttnError as error:
        raise ConfigError(Mistake(key, str(error))) from error
    except Exception as error:  # third-party components may raise anything
        raise ConfigError(Mistake(key, foreign(error))) from error


def foreign(error: Exception) -> str:
    """Summarize an exception of third-party code in one line."""
    text = shorten(str(error), _LONGEST, placeholder=" ...")
    return f"{type(error).__name__}: {text}".removesuffix(": ")
