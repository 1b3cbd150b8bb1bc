"""Randomness that depends on the sample and the epoch alone.

Augmentation usually draws from whatever state its worker process is in, which a resumed run cannot
restore. Here each draw is seeded by (seed, epoch, index), so that a run which was interrupted sees
the pixels that an uninterrupted one sees, whatever the number of workers.
"""

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils.data import Dataset, DistributedSampler


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Draw, on the CPU, from a state that only the numbers determine; put the former state back.

    ``torch.manual_seed`` would seed the GPUs as well, which draw dropout, and take a tenth of the
    time that decoding a photograph takes.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(hash(numbers) & 0x7FFF_FFFF_FFFF_FFFF)
    try:
        yield
    finally:
        generator.set_state(state)


class SeededSampler(DistributedSampler):
    """A DistributedSampler that tells each sample the epoch it is drawn for."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class SeededDataset(Dataset):
    """Draws each sample of a dataset under its own seed; indexed by (epoch, index)."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))  # what DistributedSampler asks of it too

    def __getitem__(self, position: tuple[int, int]) -> Any:
        epoch, index = position
        with seeded(self.seed, epoch, index):
            return self.dataset[index]
