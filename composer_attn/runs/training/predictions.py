"""What a run predicted for each evaluation image, as of its last evaluation."""

import os
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from composer_attn.runs.training.checkpoint_saver import saving

FILE = "predictions.npz"
_Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions, one for each image, in the order of the data.

    Attributes:
        labels: the class of each image, ``(N,)``.
        predicted: the class with the largest logit, ``(N,)``.
        probability: its probability, ``(N,)``.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether each image was classified correctly, ``(N,)``."""
        return self.labels == self.predicted

    def comparable(self, other: "Predictions") -> bool:
        """Return whether both are of the same images, by their labels."""
        return np.array_equal(self.labels, other.labels)


class PredictionsWriter(Callback):
    """Writes the predictions of every evaluation of a classifier, replacing those before.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def eval_start(self, state: State, logger: Logger) -> None:
        """Forget the evaluation before."""
        self._batches = []

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        """Keep the predictions of a microbatch, on its device."""
        outputs, batch = state.outputs, state.batch
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if not isinstance(outputs, Tensor) or not isinstance(labels, Tensor):
            return
        if outputs.ndim == 2 and labels.ndim == 1:
            probability, predicted = outputs.detach().float().softmax(1).max(1)
            self._batches.append((labels.detach(), predicted, probability))

    def eval_end(self, state: State, logger: Logger) -> None:
        """Gather the predictions of all ranks, and write them."""
        columns = tuple(torch.cat(c).cpu().numpy() for c in zip(*self._batches, strict=True))
        self._batches = []
        gathered: list[Any] = dist.all_gather_object(columns)  # empty if nothing was kept
        if dist.get_global_rank() != 0 or not all(gathered):
            return
        dataset = getattr(state.dataloader, "dataset", None)
        count = len(cast(Sized, dataset)) if hasattr(dataset, "__len__") else None
        labels, predicted, probability = interleaved(gathered, count)
        path = self.folder / FILE
        scratch = self.folder / f"{FILE}.part"
        with saving(path):
            with scratch.open("wb") as file:
                np.savez_compressed(
                    file,
                    labels=labels.astype(np.int32),
                    predicted=predicted.astype(np.int32),
                    probability=probability.astype(np.float16),
                )
            os.replace(scratch, path)


def interleaved(ranks: list[_Columns], count: int | None) -> _Columns:
    """Return columns in the order of the data, of which rank r of R has numbers r, r + R, ...

    Args:
        ranks: for each rank, its columns.
        count: number of images: what follows them is padding of the last batch.
    """
    position = [np.arange(len(rank[0])) * len(ranks) + r for r, rank in enumerate(ranks)]
    order = np.argsort(np.concatenate(position), kind="stable")[:count]
    first, second, third = (np.concatenate(column)[order] for column in zip(*ranks, strict=True))
    return first, second, third


def read_predictions(folder: Path) -> Predictions | None:
    """Read the predictions of a run; ``None`` if there is no valid file of them."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            found = Predictions(file["labels"], file["predicted"], file["probability"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    shapes = {array.shape for array in (found.labels, found.predicted, found.probability)}
    return found if len(shapes) == 1 and found.labels.ndim == 1 and found.labels.size else None
