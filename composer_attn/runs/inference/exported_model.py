"""Open an exported network, with the card that stands beside it."""

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
    """A network that was exported, as ready to be asked as a run is.

    Attributes:
        card: what stands beside the file.
        compute: maps prepared images ``(N, 3, size, size)`` to logits ``(N, classes)``.
    """

    card: ModelCard
    compute: Compute

    @property
    def preprocessing(self) -> Preprocessing:
        """What makes a tensor of a PIL image."""
        return self.card.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output."""
        return self.card.classes

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class ``(N, classes)`` for prepared images."""
        with torch.inference_mode():
            return as_probabilities(self.compute(images), self.card.activation)


def is_exported(path: str | Path) -> bool:
    """Say whether a path is, by its ending, that of an exported file."""
    return Path(path).suffix in {format.ending for format in FORMATS.values()}


def open_exported(path: str | Path) -> ExportedModel:
    """Open an exported file; nothing in it runs but operations on tensors.

    Raises:
        ArgumentError: there is no such file, or its card is missing or of another file.
        CheckpointError: it is not whole, or holds more.
        MissingExtraError: what reads it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ArgumentError(f"there is no file {path}")
    format = next(f for f in FORMATS.values() if f.ending == path.suffix)
    if not format.from_others:
        safe = ", ".join(f.ending for f in FORMATS.values() if f.from_others)
        raise ArgumentError(
            f"{path} is a program of its own, which is not run here; predictions are made by "
            f"{safe}, or by the run itself"
        )
    format.check_library()
    card = read_card(path)
    try:
        return ExportedModel(card, format.read(path))
    except ComposerAttnError:
        raise
    except Exception as error:  # of whichever library reads it
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
