"""The results of a run, printed at its end and saved as ``summary.json``."""

import json
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from statistics import quantiles
from typing import cast

import torch
from composer import Trainer
from composer.core import State
from composer.utils import dist
from rich.console import Console
from rich.table import Table
from torch import nn

from composer_attn.functional import attended_modules
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.tasks.table import computed, headline_named
from composer_attn.runs.training.build import Parts
from composer_attn.runs.training.history import History
from composer_attn.runs.training.network_cost import (
    count_macs,
    count_parameters,
    device_name,
    peak_memory,
)
from composer_attn.runs.training.rank_consistency import versions

FILE = "summary.json"


@dataclass(frozen=True)
class Summary:
    """The final figures of a run.

    Attributes:
        run_name: name of the run.
        metrics: the final evaluation metrics by name.
        attended_layers: number of modules with added attention.
        parameters_before: number of parameters of the network as built.
        parameters_after: number of parameters of the network as trained.
        macs: multiply-accumulates of the forward pass of one image; None if parameters are sharded
            over ranks.
        images_per_second: training throughput over all ranks, excluding evaluation and the first
            step.
        seconds: wall time of training, excluding evaluation.
        peak_memory: peak memory of this rank in bytes, on the GPU or else of the process.
        skipped_images: how often an unreadable training image was skipped since this process
            started, over all ranks.
        ranks: number of processes.
        versions: versions of Python and of the relevant packages.
        save_folder: the folder of checkpoints, config and summary.
        passed_over_files: number of training data files ignored as not being images, by suffix.
        started_from: the checkpoint of ``load_path``, and what was loaded of it; None without one.
        startup_seconds: part of ``seconds`` that first steps took, which build or compile kernels.
        step_seconds: quartiles of the wall time of later steps; None if there was none.
        device: the name of this rank's device.
        threads: number of torch's threads on the CPU of this rank.
        precision: precision of the run.
    """

    run_name: str
    metrics: dict[str, float]
    attended_layers: int
    parameters_before: int
    parameters_after: int
    macs: int | None
    images_per_second: float
    seconds: float
    peak_memory: int
    skipped_images: int
    ranks: int
    versions: dict[str, str]
    save_folder: str
    passed_over_files: dict[str, int] = field(default_factory=dict)
    started_from: str | None = None
    startup_seconds: float = 0.0
    step_seconds: list[float] | None = None
    device: str | None = None
    threads: int | None = None
    precision: str | None = None

    def write(self) -> None:
        """Write ``summary.json`` to the save folder."""
        path = Path(self.save_folder) / FILE
        values = asdict(self)
        # JSON has no nan: null represents non-finite numbers.
        values["metrics"] = {n: v if isfinite(v) else None for n, v in self.metrics.items()}
        path.write_text(json.dumps(values, indent=2) + "\n")

    def show(self, console: Console | None = None) -> None:
        """Print the figures as a table."""
        table = Table(title=self.run_name, show_header=False, title_justify="left")
        for name, value in self.metrics.items():
            written = headline_named(name)
            table.add_row(written.label, written.written(value))
        if self.started_from:
            table.add_row("started from", self.started_from)
        added = self.parameters_after - self.parameters_before
        table.add_row("attended layers", str(self.attended_layers))
        table.add_row("parameters before", f"{self.parameters_before:,}")
        table.add_row("parameters after", f"{self.parameters_after:,} ({added:+,})")
        if self.macs is not None:
            table.add_row("multiply-accumulates", f"{self.macs:,} an image")
        rate = f"{self.images_per_second:,.0f} images/s, {self.seconds:.1f} s"
        table.add_row("training", rate)
        table.add_row("peak memory", f"{self.peak_memory / 2**20:,.0f} MiB")
        if self.skipped_images:
            table.add_row("skipped images", f"{self.skipped_images:,}")
        if self.passed_over_files:
            counts = (f"{n:,} {ending}" for ending, n in self.passed_over_files.items())
            table.add_row("passed-over files", ", ".join(counts))
        table.add_row("saved in", self.save_folder)
        (console or Console()).print(table)


def summarize(
    config: RunConfig, parts: Parts, trainer: Trainer, parameters_before: int, history: History
) -> Summary:
    """Collect a run's final figures from its Trainer; call it on every rank."""
    state = trainer.state
    seconds = state.timestamp.total_wct.total_seconds()
    device = next(parts.model.parameters()).device
    return Summary(
        run_name=state.run_name,
        metrics={
            name: value
            for metrics in state.eval_metrics.values()
            for name, value in computed(metrics).items()
        },
        attended_layers=len(attended_modules(parts.model)),
        parameters_before=parameters_before,
        parameters_after=count_parameters(parts.model),
        macs=macs_of(config, parts),
        images_per_second=_throughput(state, history),
        seconds=seconds,
        peak_memory=peak_memory(device),
        skipped_images=sum(dist.all_gather_object(parts.train_source.skipped())),
        ranks=dist.get_world_size(),
        versions=versions(),
        save_folder=str(history.folder),
        passed_over_files=dict(parts.train_source.passed_over),
        started_from=parts.start.text,
        startup_seconds=history.startup,
        step_seconds=_quartiles(history.step_seconds),
        device=device_name(device),
        threads=torch.get_num_threads(),
        precision=state.precision.value,
    )


def _throughput(state: State, history: History) -> float:
    """Return images per second without first steps, of all steps if there are no others."""
    now = state.timestamp
    seconds = now.total_wct.total_seconds() if now.total_wct else 0.0
    later = sum(history.step_seconds)
    if later:
        return now.sample.value / now.batch.value * len(history.step_seconds) / later
    return now.sample.value / seconds if seconds else 0.0


def _quartiles(seconds: list[float]) -> list[float] | None:
    return quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else None


def macs_of(config: RunConfig, parts: Parts) -> int | None:
    """Count the multiply-accumulates of one image; None if the parameters are sharded."""
    if config.parallelism != "ddp":
        return None
    network = cast(nn.Module, parts.model.module)
    parameter = next(network.parameters())
    image = torch.zeros(1, *parts.train_source.image_shape)
    return count_macs(network, image.to(parameter.device, parameter.dtype))
