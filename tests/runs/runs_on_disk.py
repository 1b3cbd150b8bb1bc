"""Write the files of a run with given figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, fields, replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from composer_attn.attention import EfficientChannelAttention
from composer_attn.callbacks import excitations
from composer_attn.callbacks.tally import Tally
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.training import predictions, step_history
from composer_attn.runs.training.history import Moment
from composer_attn.runs.training.step_history import Step
from composer_attn.runs.training.step_times import StepTimes

EPOCH = 1000  # images


def write_run(
    folder: Path,
    attention: str | None = None,
    seed: int = 17,
    accuracy: float | None = 0.9,
    *,
    speed: float = 100.0,
    parameters: int = 1000,
    losses: tuple[float, ...] = (2.0, 1.0),
    finished: bool = True,
    watched: bool = True,
    wrong: Sequence[int] | None = None,
    images: int = 0,
    startup: float = 0.0,
    times: StepTimes | None = None,
    steps: Sequence[Step] = (),
    metric: str = "accuracy",
    **config,
) -> Path:
    """Write a run with an epoch for each loss; its accuracy, or other metric, grows evenly.

    With a number of images it has predictions for them, all but the ``wrong`` ones correct. Its
    first step takes ``startup`` seconds more than the others.
    """
    if wrong is not None:
        accuracy = 1 - len(wrong) / images
    folder.mkdir(parents=True)
    sections = {
        "model": {"name": "resnet10", "num_classes": 10},
        "train_dataset": {"name": "digits", "split": "train"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "algorithms": {attention: {}} if attention else {},
    }
    run = RunConfig(run_name=folder.name, seed=seed, save_folder=str(folder), **(sections | config))
    OmegaConf.save(OmegaConf.structured(run), folder / "config.yaml")
    lines = []
    for epoch, loss in enumerate(losses, 1):
        seen = epoch * EPOCH
        at = (epoch * 10, epoch, seen, seen / speed + startup)
        kept = loss if isfinite(loss) else None
        reached = accuracy and accuracy * epoch / len(losses)
        lines.append(Moment("train", *at, {"loss": kept}, startup))
        lines.append(Moment("eval", *at, {metric: reached}, startup))
    text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
    (folder / "history.jsonl").write_text(text)
    if attention in ("squeeze_excite", "eca") and watched:
        write_excitations(folder)
    if times is not None:
        times.write(folder)
    if steps:
        write_steps(folder, steps)
    if wrong is not None:
        write_predictions(folder, images, wrong)
    if finished:
        write_summary(folder, attention, accuracy, speed, parameters, len(losses), metric)
    return folder


def write_summary(
    folder: Path, attention: str | None, accuracy: float | None, speed: float, parameters: int,
    epochs: int, metric: str = "accuracy",
) -> None:  # fmt: skip
    values = {
        "run_name": folder.name,
        "metrics": {metric: accuracy},
        "attended_layers": 2 if attention else 0,
        "parameters_before": 1000,
        "parameters_after": parameters,
        "macs": 18_000_000,
        "images_per_second": speed,
        "seconds": epochs * EPOCH / speed,
        "peak_memory": 100 * 2**20,
        "skipped_images": 0,
        "ranks": 1,
        "versions": {"torch": "2.7.0"},
        "save_folder": str(folder),
    }
    (folder / "summary.json").write_text(json.dumps(values))


def write_steps(folder: Path, steps: Sequence[Step]) -> None:
    """Write the rows of a run's training steps."""
    lines = [",".join(map(str, astuple(step))) for step in steps]
    names = ",".join(field.name for field in fields(Step))
    (folder / step_history.FILE).write_text("\n".join([names, *lines]) + "\n")


def step_times(steps: Sequence[float], measurement: str = "one", **changes) -> StepTimes:
    """Return step times with the given seconds, and other figures that follow from them."""
    times = StepTimes(
        measurement=measurement,
        device="A Processor",
        threads=2,
        precision="fp32",
        batch_size=64,
        image_shape=(3, 32, 32),
        steps=tuple(steps),
        latencies=tuple(step / 100 for step in steps),
        kept_bytes=int(steps[0] * 2**30),
        evaluation_seconds=steps[0] / 4,
        loading_seconds=0.0,
        building_seconds=5.0,
        batches=10,
        evaluation_batches=2,
    )
    return replace(times, **changes)


def write_predictions(
    folder: Path, images: int, wrong: Sequence[int], labels: np.ndarray | None = None
) -> None:
    """Write predictions for images of ten classes in turn; wrong ones are of the next class."""
    labels = np.arange(images) % 10 if labels is None else labels
    predicted = labels.copy()
    predicted[list(wrong)] = (labels[list(wrong)] + 1) % 10
    probability = np.full(images, 0.75)
    path = folder / predictions.FILE
    np.savez(path, labels=labels, predicted=predicted, probability=probability)


def write_excitations(folder: Path) -> None:
    """Write a monitor's file for two layers and three classes, the last without samples."""
    random = np.random.default_rng(0)
    tallies = {}
    for name, channels in (("layer1.0.conv1", 8), ("layer2.0.conv1", 100)):
        tallies[name] = Tally(EfficientChannelAttention(channels), 3, False, torch.device("cpu"))
        rows, groups = torch.arange(20), torch.arange(20) % 2
        tallies[name].add(torch.tensor(random.random((20, channels))), (rows, groups))
    excitations.write(folder, 20, (0, 1, 7), tallies)
