"""Randomness that depends only on the sample and the epoch.

Augmentation usually draws from the random state of its worker process, which a resumed run cannot
restore. Here each sample is seeded by (seed, epoch, index), so that a resumed run sees the same
pixels as an uninterrupted one, whatever the number of workers.
"""

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils.data import Dataset, DistributedSampler


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's CPU generator by the given numbers, and restore its state on exit.

    ``torch.manual_seed`` would also seed the GPUs, which draw dropout, and would take a tenth of
    the time of decoding a photograph.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(hash(numbers) & 0x7FFF_FFFF_FFFF_FFFF)
    try:
        yield
    finally:
        generator.set_state(state)


class SeededSampler(DistributedSampler):
    """A DistributedSampler that yields (epoch, index)."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class SeededDataset(Dataset):
    """Loads each sample of a dataset under its own seed; indexed by (epoch, index)."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))  # DistributedSampler requires a length, too

    def __getitem__(self, position: tuple[int, int]) -> Any:
        epoch, index = position
        with seeded(self.seed, epoch, index):
            return self.dataset[index]
