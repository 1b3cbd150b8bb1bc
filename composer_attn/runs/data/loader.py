"""From a dataset to the batches of one rank."""

from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.seeded import SeededDataset, SeededSampler
from composer_attn.runs.data.source import Source

# What a dataset section takes besides the dataset's own arguments.
LOADER_ARGUMENTS = ("num_workers", "prefetch_factor", "drop_last")


def build_loader(
    source: Source,
    batch_size: int,
    *,
    train: bool,
    seed: int,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    drop_last: bool | None = None,
) -> DataSpec:
    """Batch a dataset for this rank.

    Order and augmentation are seeded on their own, so that a resumed run goes on with exactly the
    batches that an uninterrupted one would see.

    Args:
        source: the dataset.
        batch_size: global: over all ranks.
        train: whether to shuffle, and to leave out a last batch that is not full.
        seed: of order and augmentation.
        num_workers: processes of this rank that load.
        prefetch_factor: batches that each of them keeps ready; PyTorch's default is 2.
        drop_last: overrides what ``train`` says of the last batch.

    Raises:
        ArgumentError: the ranks cannot share the batch equally, or there is no batch.
    """
    ranks = dist.get_world_size()
    if batch_size < 1 or batch_size % ranks:
        raise ArgumentError(f"batch_size must be a multiple of the {ranks} ranks; got {batch_size}")
    drop_last = train if drop_last is None else drop_last
    options: dict[str, Any] = {"batch_size": batch_size // ranks, "drop_last": drop_last}
    options |= _worker_options(num_workers, prefetch_factor)
    if source.collate:
        options["collate_fn"] = source.collate
    build = _stream if source.streams else _sampled
    loader = build(source, options, train, seed)
    if not len(loader):
        count = len(cast(Sized, loader.dataset))  # as the loader itself asks
        raise ArgumentError(f"{count} samples do not fill one batch of {batch_size}")
    return DataSpec(loader, microbatch_transforms=_on_images(source.device_transform))


def _sampled(source: Source, options: dict[str, Any], train: bool, seed: int) -> DataLoader:
    dataset = cast(Dataset, source.dataset)  # only of a stream it is what builds one
    kind: type[DistributedSampler] = DistributedSampler
    if source.random:
        dataset, kind = SeededDataset(dataset, seed), SeededSampler
    # What composer.utils.dist.get_sampler builds, for a class of sampler of our choice.
    sampler: DistributedSampler = kind(
        dataset,
        num_replicas=dist.get_world_size(),
        rank=dist.get_global_rank(),
        shuffle=train,
        seed=seed,
        drop_last=options["drop_last"],
    )
    return DataLoader(dataset, sampler=sampler, pin_memory=torch.cuda.is_available(), **options)


def _stream(source: Source, options: dict[str, Any], train: bool, seed: int) -> DataLoader:
    from streaming import StreamingDataLoader

    build = cast(Callable[..., Any], source.dataset)  # of a stream
    dataset = build(batch_size=options["batch_size"], shuffle=train, shuffle_seed=seed)
    return StreamingDataLoader(dataset, pin_memory=torch.cuda.is_available(), **options)


def _worker_options(num_workers: int, prefetch_factor: int | None) -> dict[str, Any]:
    if not num_workers:
        return {}
    options = {"num_workers": num_workers, "persistent_workers": True}
    return options | ({"prefetch_factor": prefetch_factor} if prefetch_factor else {})


def _on_images(transform):
    """Apply a transform to the images of a batch of images and labels."""
    return transform and (lambda batch: (transform(batch[0]), *batch[1:]))
