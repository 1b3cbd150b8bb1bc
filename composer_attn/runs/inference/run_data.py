"""The data of a trained run: images to evaluate on, and images to calibrate a quantizer with."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Any

import torch
from composer.core import DataSpec
from torch import Tensor
from torch.utils.data import Subset

from composer_attn.errors import ArgumentError, ConfigError, first_few
from composer_attn.runs.config.config_errors import Mistake, at
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.data import LOADER_ARGUMENTS, Source, build_loader
from composer_attn.runs.inference.load_run import LoadedRun
from composer_attn.runs.tasks.table import find_task

DEFAULT_CALIBRATION_IMAGES = 128
# Arguments of a dataset that determine what the network sees; set by the evaluation data.
_PREPARATION = ("size", "resize", "mean", "std")


def evaluation_data(
    run: LoadedRun, batch_size: int, samples: int | None = None
) -> tuple[Source, DataSpec]:
    """Build the evaluation data of a run, from its config with overrides applied.

    Args:
        run: a loaded run.
        batch_size: total over all ranks.
        samples: number of images, evenly spread over the data; by default, and for a stream, all.

    Raises:
        ConfigError: the config names no evaluation data, it does not exist, or its classes differ.
    """
    section, options = _split(_section(run.config))
    task = find_task(run.config.task)
    with at("eval_dataset"):
        source = task.datasets[section.pop("name")](**section)
        _check_classes(source, run.classes)
        task.check_data(run.model, source)
        if samples is not None and not source.streams:
            source = _spread(source, samples)
        data = build_loader(source, batch_size, train=False, seed=run.config.seed, **options)
    return source, data


def calibration_images(run: LoadedRun, count: int | None, batch_size: int) -> list[Tensor]:
    """Return batches of training images of a run, prepared as for evaluation.

    Args:
        run: a loaded run.
        count: number of images, evenly spread over the training data (of a stream, the first
            ones); by default :data:`DEFAULT_CALIBRATION_IMAGES`, or as many as there are.
        batch_size: images per batch.

    Raises:
        ArgumentError: there are fewer training images.
        ConfigError: the training data do not exist.
    """
    section, options = _split(_prepared_as_for_evaluation(run.config))
    options["drop_last"] = False
    with at("train_dataset"):
        source = find_task(run.config.task).datasets[section.pop("name")](**section)
        data = build_loader(source, batch_size, train=False, seed=run.config.seed, **options)
    loader: Any = data.dataloader
    found = len(loader.dataset)
    if count is not None and count > found:
        raise ArgumentError(
            f"calibration_images must be at most {found:,}, the number of training images; "
            f"got {count:,}"
        )
    wanted = min(found, DEFAULT_CALIBRATION_IMAGES) if count is None else count
    with at("train_dataset"):
        if not source.streams:
            source = _spread(source, wanted)
            data = build_loader(source, batch_size, train=False, seed=run.config.seed, **options)
        return [images for images, _ in batches(source, data, wanted)]


def batches(
    source: Source, data: DataSpec, samples: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield preprocessed images and labels, up to ``samples`` images."""
    left: Any = inf if samples is None else samples
    for images, labels in data.dataloader:
        if left <= 0:
            return
        images, labels = (part[: int(min(left, len(labels)))] for part in (images, labels))
        left -= len(labels)
        prepared = source.device_transform(images) if source.device_transform else images
        yield prepared.contiguous(), labels


def first_images(source: Source, data: DataSpec) -> Tensor:
    """Return two preprocessed images: a batch of one would be exported as a constant size."""
    images, _ = next(batches(source, data))
    return torch.cat([images, images])[:2]


def _split(section: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the arguments of a dataset from those of its loader."""
    section = dict(section)
    return section, {name: section.pop(name) for name in LOADER_ARGUMENTS if name in section}


def _prepared_as_for_evaluation(config: RunConfig) -> dict[str, Any]:
    """Return the training section without augmentation, with the preparation of evaluation."""
    evaluation, section = _section(config), dict(config.train_dataset)
    defaults, taken = _parameters(config, evaluation), _parameters(config, section)
    for name in _PREPARATION:
        if name in taken and name in defaults:
            section[name] = evaluation.get(name, defaults[name].default)
    if "augmentation" in taken:
        section["augmentation"] = "center_crop"
    if {"size", "resize"} <= set(taken):
        # A training section may crop more than its resize, which random crops ignore.
        size, resize = (section.get(name, taken[name].default) for name in ("size", "resize"))
        section["resize"] = max(size, resize)
    return section


def _parameters(config: RunConfig, section: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(find_task(config.task).datasets[section["name"]]).parameters


def _section(config: RunConfig) -> dict[str, Any]:
    if not config.eval_dataset:
        message = (
            f"{config.run_name} was trained without one: give the data to evaluate on, like "
            "eval_dataset.name=image_folder eval_dataset.root=photos/val "
            "eval_dataset.augmentation=center_crop"
        )
        raise ConfigError(Mistake("eval_dataset", message))
    return config.eval_dataset


def _spread(source: Source, samples: int) -> Source:
    """Select images spread over the whole dataset, which may be sorted by class."""
    dataset: Any = source.dataset
    count = min(samples, len(dataset))
    indices = [index * len(dataset) // count for index in range(count)]
    return replace(source, dataset=Subset(dataset, indices))


def _check_classes(source: Source, classes: tuple[str, ...]) -> None:
    """Check that each label of the data corresponds to the network output of that index."""
    if source.num_classes > len(classes):
        raise ArgumentError(
            f"it has {source.num_classes} classes, but the network has {len(classes)} outputs"
        )
    named = classes != tuple(str(index) for index in range(len(classes)))
    expected = classes[: len(source.classes)]
    if source.classes and named and source.classes != expected:
        differing = sorted(set(source.classes) ^ set(expected))
        raise ArgumentError(
            f"its classes are not the network's, {first_few(classes)}; only in one: "
            f"{first_few(differing)}"
        )
