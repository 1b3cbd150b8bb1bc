"""Data loaders: the batches of one rank."""

from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.seeded import SeededDataset, SeededSampler
from composer_attn.runs.data.source import Source

# Arguments of a dataset section besides the dataset's own.
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
    """Build the data loader of a dataset for this rank.

    Order and augmentation have their own seeds, so that a resumed run continues with exactly the
    batches of an uninterrupted one.

    Args:
        source: the dataset.
        batch_size: global batch size, over all ranks.
        train: whether to shuffle, and to drop an incomplete last batch.
        seed: seed of order and augmentation.
        num_workers: number of worker processes of this rank.
        prefetch_factor: batches that each worker prefetches; PyTorch's default is 2.
        drop_last: overrides whether to drop an incomplete last batch.

    Raises:
        ArgumentError: the batch size is not divisible by the number of ranks, or there are too few
            samples for one batch.
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
        count = len(cast(Sized, loader.dataset))  # the loader requires a length, too
        raise ArgumentError(f"{count} samples do not fill one batch of {batch_size}")
    return DataSpec(
        loader,
        microbatch_transforms=_on_images(source.device_transform),
        get_num_samples_in_batch=source.count,
        split_batch=source.split,
    )


def _sampled(source: Source, options: dict[str, Any], train: bool, seed: int) -> DataLoader:
    dataset = cast(Dataset, source.dataset)  # a builder only if source.streams
    kind: type[DistributedSampler] = DistributedSampler
    if source.random:
        dataset, kind = SeededDataset(dataset, seed), SeededSampler
    # As composer.utils.dist.get_sampler, which does not allow choosing the class.
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

    build = cast(Callable[..., Any], source.dataset)  # since source.streams
    dataset = build(batch_size=options["batch_size"], shuffle=train, shuffle_seed=seed)
    return StreamingDataLoader(dataset, pin_memory=torch.cuda.is_available(), **options)


def _worker_options(num_workers: int, prefetch_factor: int | None) -> dict[str, Any]:
    if not num_workers:
        return {}
    options = {"num_workers": num_workers, "persistent_workers": True}
    return options | ({"prefetch_factor": prefetch_factor} if prefetch_factor else {})


def _on_images(transform):
    """Return a function that applies a transform to the images of a batch, or None."""
    return transform and (lambda batch: (transform(batch[0]), *batch[1:]))
