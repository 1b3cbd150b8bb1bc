"""From a dataset to the batches of one rank."""

from typing import Any

import torch
from composer.utils import dist
from torch.utils.data import DataLoader, Dataset

from composer_attn.errors import ArgumentError

# What a dataset section takes besides the dataset's own arguments.
LOADER_ARGUMENTS = ("num_workers", "drop_last")


def build_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool,
    seed: int,
    num_workers: int = 0,
    drop_last: bool | None = None,
) -> DataLoader:
    """Batch a dataset for this rank.

    The order comes from a sampler seeded on its own, so that a resumed run goes on with exactly the
    batches that an uninterrupted one would see.

    Args:
        dataset: a map-style dataset.
        batch_size: global: over all ranks.
        train: whether to shuffle, and to leave out a last batch that is not full.
        seed: of the order.
        num_workers: processes of this rank that load.
        drop_last: overrides what ``train`` says of the last batch.

    Raises:
        ArgumentError: the ranks cannot share the batch equally, or there is no batch.
    """
    ranks = dist.get_world_size()
    if batch_size < 1 or batch_size % ranks:
        raise ArgumentError(f"batch_size must be a multiple of the {ranks} ranks; got {batch_size}")
    drop_last = train if drop_last is None else drop_last
    loader = DataLoader(
        dataset,
        batch_size=batch_size // ranks,
        sampler=dist.get_sampler(dataset, drop_last=drop_last, shuffle=train, seed=seed),
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        **_worker_arguments(num_workers),
    )
    if not len(loader):
        raise ArgumentError(f"{len(dataset)} samples do not fill one batch of {batch_size}")
    return loader


def _worker_arguments(num_workers: int) -> dict[str, Any]:
    if not num_workers:
        return {}
    return {"num_workers": num_workers, "persistent_workers": True}
