"""How long training steps and predictions of several runs take, measured in turns.

In turns, because a machine's speed changes with its load and its temperature: runs that were
trained one after another differ by that, too.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from composer.core import get_precision_context
from composer.models import ComposerModel
from torch import Tensor

from composer_attn.costs.memory import saved_bytes
from composer_attn.costs.timing import take_turns_for, timed
from composer_attn.runs.config.parallelism import join_ranks
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.training.build import build_parts, build_trainer
from composer_attn.runs.training.network_cost import device_name

FILE = "step_times.json"
_WARM_UP = 2  # steps, of which the first builds or compiles kernels
_LATENCY_SHARE = 0.2  # of the time for measuring


@dataclass(frozen=True)
class StepTimes:
    """Times of a run, measured in turns with those of others.

    Attributes:
        measurement: identifies the runs that were measured together.
        device: the device's name.
        threads: number of torch's threads on the CPU.
        precision: precision of the steps.
        batch_size: number of images of a step, on this device.
        image_shape: ``(channels, height, width)``.
        steps: seconds of a training step (forward, loss, backward, optimizer), one for each round.
        latencies: seconds of the prediction for one image, one for each round.
        kept_bytes: memory that the forward pass of a step keeps for backward.
        evaluation_seconds: seconds of the prediction for a batch.
        loading_seconds: seconds of loading a batch in one process.
        building_seconds: seconds of building the run.
        batches: number of training batches of an epoch; ``None`` if not known.
        evaluation_batches: number of batches of an evaluation; ``None`` if there is none.
    """

    measurement: str
    device: str
    threads: int
    precision: str
    batch_size: int
    image_shape: tuple[int, int, int]
    steps: tuple[float, ...]
    latencies: tuple[float, ...]
    kept_bytes: int
    evaluation_seconds: float
    loading_seconds: float
    building_seconds: float
    batches: int | None
    evaluation_batches: int | None

    def write(self, folder: Path) -> None:
        """Write ``step_times.json`` to a run's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_step_times(path: Path) -> StepTimes | None:
    """Read a file that :meth:`StepTimes.write` wrote; ``None`` if there is no valid one."""
    try:
        return parse_step_times(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def parse_step_times(values: dict[str, Any]) -> StepTimes:
    """Return the times that ``asdict`` had converted."""
    lists = {key: tuple(values[key]) for key in ("image_shape", "steps", "latencies")}
    return StepTimes(**(values | lists))


def measure(configs: Sequence[RunConfig], seconds: float) -> list[StepTimes]:
    """Measure training steps and predictions of runs in turns, on one device, without saving.

    All steps of a run are on the same batch, with a learning rate of zero.

    Args:
        configs: the configs of the runs.
        seconds: time for the rounds; there are at least three.

    Raises:
        ComposerAttnError: a run cannot be built.
    """
    subjects = [_Subject(config) for config in configs]
    for subject in subjects:
        for _ in range(_WARM_UP):
            subject.step()
    steps = take_turns_for(seconds * (1 - _LATENCY_SHARE), [subject.step for subject in subjects])
    kept = [subject.kept_bytes() for subject in subjects]
    batches = [timed(subject.predict_batch) for subject in subjects]
    for subject in subjects:
        for _ in range(_WARM_UP):
            subject.predict()
    latencies = take_turns_for(seconds * _LATENCY_SHARE, [subject.predict for subject in subjects])
    measurement = uuid.uuid4().hex
    return [
        StepTimes(
            measurement=measurement,
            device=device_name(subject.device),
            threads=torch.get_num_threads(),
            precision=subject.precision,
            batch_size=len(subject.images),
            image_shape=subject.image_shape,
            steps=tuple(steps[i]),
            latencies=tuple(latencies[i]),
            kept_bytes=kept[i],
            evaluation_seconds=batches[i],
            loading_seconds=subject.loading_seconds,
            building_seconds=subject.building_seconds,
            batches=subject.batches,
            evaluation_batches=subject.evaluation_batches,
        )
        for i, subject in enumerate(subjects)
    ]


class _Subject:
    """A run that is built, with one batch, on its device."""

    def __init__(self, config: RunConfig):
        begun = time.perf_counter()
        join_ranks(config)
        parts = build_parts(_quiet(config))
        trainer = build_trainer(config, replace(parts, loggers=[], callbacks=[]), None)
        self.state = state = trainer.state
        self.model = cast(ComposerModel, state.model)
        self.optimizers = state.optimizers
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = 0.0  # the same work, on weights that stay as they are
        self.building_seconds = time.perf_counter() - begun
        batches = iter(parts.train_data.dataloader)
        batch = next(batches)
        begun = time.perf_counter()
        batch = next(batches, batch)
        self.loading_seconds = time.perf_counter() - begun
        data = parts.train_data
        batch = data.batch_transforms(state.device.batch_to_device(batch))
        batch = data.microbatch_transforms(batch)  # normalizes, which Composer does after splitting
        size = state.device_train_microbatch_size
        self.microbatches: Any = [batch]
        if isinstance(size, int) and size < len(batch[0]):
            self.microbatches = data.split_batch(batch, size)
        self.images: Tensor = batch[0]
        self.labels: Tensor = batch[1]
        self.device = next(self.model.parameters()).device
        self.precision = state.precision.value
        self.image_shape = parts.train_source.image_shape
        self.batches = _length(parts.train_data.dataloader)
        evaluated = parts.eval_data
        self.evaluation_batches = _length(evaluated.dataloader) if evaluated else None

    def step(self) -> None:
        self.model.train()
        for batch in self.microbatches:
            (self._loss(batch) / len(self.microbatches)).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def predict(self) -> None:
        self._predict(self.images[:1], self.labels[:1])

    def predict_batch(self) -> None:
        self._predict(self.images, self.labels)

    def kept_bytes(self) -> int:
        self.model.train()
        return saved_bytes(self.model, lambda: self._loss(self.microbatches[0]))

    def _loss(self, batch: Any) -> Tensor:
        with get_precision_context(self.state.precision, self.state.precision_config):
            loss: Any = self.model.loss(self.model(batch), batch)
        if isinstance(loss, dict):  # the losses of a detector, of which Composer takes the sum
            loss = sum(loss.values())
        return loss

    def _predict(self, images: Tensor, labels: Tensor) -> None:
        self.model.eval()
        context = get_precision_context(self.state.precision, self.state.precision_config)
        with torch.no_grad(), context:
            self.model((images, labels))


def _quiet(config: RunConfig) -> RunConfig:
    """Return a config whose data is loaded in this process."""
    sections: dict[str, Any] = {}
    for key in ("train_dataset", "eval_dataset"):
        section = getattr(config, key)
        if section:
            dropped = ("num_workers", "prefetch_factor")
            sections[key] = {k: v for k, v in section.items() if k not in dropped}
    return replace(config, **sections, load_path=None)


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a stream
        return None
