"""Ask a network about images: the most probable classes of each."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError, ComposerAttnError, first_line
from composer_attn.runs.data.preprocessing import Preprocessing

_BATCH = 32


class Classifier(Protocol):
    """What can be asked: a run, or what was exported from one."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What makes a tensor of a PIL image."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class ``(N, classes)`` for prepared images."""


@dataclass(frozen=True)
class Guess:
    """A class, and how probable it is."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file, the first the most probable."""

    image: str
    guesses: tuple[Guess, ...]

    def __str__(self) -> str:
        return f"{self.image}: " + ", ".join(f"{g.name} {g.probability:.2%}" for g in self.guesses)


def predict(classifier: Classifier, images: Sequence[str | Path], top: int = 5) -> list[Prediction]:
    """Return the ``top`` most probable classes of each image file.

    Raises:
        ArgumentError: a file cannot be read as an image, or ``top`` is less than 1.
    """
    top = min(whole_number("top", top, minimum=1), len(classifier.classes))
    predictions = []
    for paths in _batches(images):
        batch = torch.stack([_prepare(path, classifier.preprocessing) for path in paths])
        found = classifier.probabilities(batch).topk(top)
        rows = zip(paths, found.values.tolist(), found.indices.tolist(), strict=True)
        for path, probabilities, indices in rows:
            pairs = zip(indices, probabilities, strict=True)
            guesses = (Guess(classifier.classes[i], i, p) for i, p in pairs)
            predictions.append(Prediction(str(path), tuple(guesses)))
    return predictions


def as_json(predictions: Iterable[Prediction]) -> str:
    """Return predictions as one JSON document, a list."""
    return json.dumps([asdict(prediction) for prediction in predictions], indent=2)


def _batches(images: Sequence[str | Path]) -> Iterator[list[str | Path]]:
    waiting = iter(images)
    while batch := list(islice(waiting, _BATCH)):
        yield batch


def _prepare(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    try:
        with Image.open(path) as image:
            return preprocessing(image)
    except ComposerAttnError as error:
        raise ArgumentError(f"{path} cannot be prepared: {error}") from error
    except Exception as error:  # of all kinds: the file may hold anything
        raise ArgumentError(f"{path} cannot be read as an image: {first_line(error)}") from error
