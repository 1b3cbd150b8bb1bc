"""Open an exported network, with the card beside it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from composer_attn.errors import ArgumentError, CheckpointError, ComposerAttnError, first_line
from composer_attn.runs.data.preprocessing import Preprocessing
from composer_attn.runs.inference.formats import FORMATS, Compute
from composer_attn.runs.inference.load_run import as_probabilities
from composer_attn.runs.inference.model_card import ModelCard, read_card


@dataclass(frozen=True)
class ExportedModel:
    """An exported network, used in the same way as a loaded run.

    Attributes:
        card: the model card beside the file.
        compute: maps preprocessed images ``(N, 3, size, size)`` to logits ``(N, classes)``.
    """

    card: ModelCard
    compute: Compute

    @property
    def preprocessing(self) -> Preprocessing:
        """The transform from a PIL image to a tensor."""
        return self.card.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output."""
        return self.card.classes

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities ``(N, classes)`` for preprocessed images."""
        with torch.inference_mode():
            return as_probabilities(self.compute(images), self.card.activation)


def is_exported(path: str | Path) -> bool:
    """Return whether a path has the suffix of an exported file."""
    return Path(path).suffix in {format.ending for format in FORMATS.values()}


def open_exported(path: str | Path) -> ExportedModel:
    """Open an exported file; nothing in it is executed but operations on tensors.

    Raises:
        ArgumentError: the file does not exist, or its card is missing or belongs to another file.
        CheckpointError: it is incomplete, or contains something else.
        MissingExtraError: the library that reads it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ArgumentError(f"there is no file {path}")
    format = next(f for f in FORMATS.values() if f.ending == path.suffix)
    if not format.from_others:
        safe = ", ".join(f.ending for f in FORMATS.values() if f.from_others)
        raise ArgumentError(
            f"{path} contains a program, which could be malicious and is not run: predict with a "
            f"file in {safe}, or with the run itself"
        )
    format.check_library()
    card = read_card(path)
    try:
        return ExportedModel(card, format.read(path))
    except ComposerAttnError:
        raise
    except Exception as error:  # from the library that reads it
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
