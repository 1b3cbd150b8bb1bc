"""The first evaluation images of a run, with the truth and its last predictions for them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from composer_attn.runs.tasks.task import Example
from composer_attn.runs.training.checkpoint_saver import saving

FILE = "examples.npz"
COUNT = 4  # images


class ExamplesWriter(Callback):
    """Writes the first images of every evaluation, replacing those before.

    Args:
        folder: the run's folder.
        examples_of: returns the examples in a batch, from the batch and the outputs.
    """

    def __init__(self, folder: str | Path, examples_of: Callable[[Any, Any], list[Example]]):
        self.folder = Path(folder)
        self.examples_of = examples_of
        self._found: list[Example] = []

    def eval_start(self, state: State, logger: Logger) -> None:
        """Forget the evaluation before."""
        self._found = []

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        """Keep the examples of a microbatch, until there are enough."""
        if len(self._found) < COUNT and dist.get_global_rank() == 0:
            self._found += self.examples_of(state.batch, state.outputs)
            self._found = self._found[:COUNT]

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write the examples, on rank 0."""
        if dist.get_global_rank() != 0 or not self._found:
            return
        path, scratch = self.folder / FILE, self.folder / f"{FILE}.part"
        arrays = {
            f"{index}/{name}": array
            for index, example in enumerate(self._found)
            for name, array in example.items()
        }
        with saving(path):
            with scratch.open("wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(scratch, path)


def read_examples(folder: Path) -> list[Example]:
    """Read the examples of a run; none if there is no valid file of them."""
    found: dict[int, Example] = {}
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            for key in file.files:
                index, _, name = key.partition("/")
                found.setdefault(int(index), {})[name] = file[key]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return []
    return [found[index] for index in sorted(found)]
