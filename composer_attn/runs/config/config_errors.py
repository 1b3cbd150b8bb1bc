"""Collect every mistake of a config, to report them all at once."""

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
    """One mistake: the key path it is at (``''``: the whole file), and what is wrong.

    Attributes:
        key: like ``optimizer.lr``.
        message: what is wrong, and what would be valid.
        file: where the key was set; filled in by ``ConfigFile.located``.
    """

    key: str
    message: str
    file: str = ""

    def __str__(self) -> str:
        parts = ": ".join(part for part in (self.file, self.key, self.message) if part)
        # What is quoted from a config may hold line breaks of any kind.
        return " ".join(line for line in parts.splitlines() if line.strip())


@contextmanager
def at(key: str) -> Iterator[None]:
    """Turn whatever a component raises over its arguments into a config's mistake at a key."""
    try:
        yield
    except ConfigError:
        raise
    except ComposerAttnError as error:
        raise ConfigError(Mistake(key, str(error))) from error
    except Exception as error:  # components are others' code, and raise what they like
        raise ConfigError(Mistake(key, foreign(error))) from error


def foreign(error: Exception) -> str:
    """Say in one line what code that is not ours raised."""
    text = shorten(str(error), _LONGEST, placeholder=" ...")
    return f"{type(error).__name__}: {text}".removesuffix(": ")
