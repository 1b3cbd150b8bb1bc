"""Classify images with a trained network: the most probable classes of each."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError, ComposerAttnError, first_line
from composer_attn.runs.data.preprocessing import Preprocessing

_BATCH = 32


class Classifier(Protocol):
    """Interface of classifiers: a loaded run, or a file exported from one."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The transform from a PIL image to a tensor."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities ``(N, classes)`` for preprocessed images."""


@dataclass(frozen=True)
class Guess:
    """A class and its probability."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file, in descending order."""

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
        batch = torch.stack([prepare(path, classifier.preprocessing) for path in paths])
        found = classifier.probabilities(batch).topk(top)
        rows = zip(paths, found.values.tolist(), found.indices.tolist(), strict=True)
        for path, probabilities, indices in rows:
            pairs = zip(indices, probabilities, strict=True)
            guesses = (Guess(classifier.classes[i], i, p) for i, p in pairs)
            predictions.append(Prediction(str(path), tuple(guesses)))
    return predictions


def as_json(predictions: Iterable[Any]) -> str:
    """Return predictions as one JSON document, a list."""
    return json.dumps([asdict(prediction) for prediction in predictions], indent=2)


def _batches(images: Sequence[str | Path]) -> Iterator[list[str | Path]]:
    waiting = iter(images)
    while batch := list(islice(waiting, _BATCH)):
        yield batch


def prepare(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """Read an image file as a network takes it, ``(3, size, size)``.

    Raises:
        ArgumentError: it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return preprocessing(image)
    except ComposerAttnError as error:
        raise ArgumentError(f"{path} cannot be prepared: {error}") from error
    except Exception as error:  # of any type: the file may contain anything
        raise ArgumentError(f"{path} cannot be read as an image: {first_line(error)}") from error
