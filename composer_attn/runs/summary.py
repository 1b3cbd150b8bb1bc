"""What a run came to: printed at its end, and kept as ``summary.json``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from composer import Trainer
from rich.console import Console
from rich.table import Table

from composer_attn.functional import attended_modules


@dataclass(frozen=True)
class Summary:
    """The closing figures of a run.

    Attributes:
        run_name: name of the run.
        metrics: the evaluation's metrics at the end, by name.
        attended_layers: number of modules with attention of ours.
        parameters_before: of the network as built.
        parameters_after: of the network as trained.
        images_per_second: training throughput over all ranks, evaluation not counted.
        seconds: wall time of training, evaluation not counted.
        save_folder: where checkpoints, config and summary are.
    """

    run_name: str
    metrics: dict[str, float]
    attended_layers: int
    parameters_before: int
    parameters_after: int
    images_per_second: float
    seconds: float
    save_folder: str

    def write(self) -> None:
        """Write ``summary.json`` into the save folder."""
        path = Path(self.save_folder) / "summary.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def show(self, console: Console | None = None) -> None:
        """Print the figures as a table."""
        table = Table(title=self.run_name, show_header=False, title_justify="left")
        for name, value in self.metrics.items():
            share = name.endswith("accuracy")
            table.add_row(name.replace("_", " "), f"{value:.2%}" if share else f"{value:.4f}")
        added = self.parameters_after - self.parameters_before
        table.add_row("attended layers", str(self.attended_layers))
        table.add_row("parameters before", f"{self.parameters_before:,}")
        table.add_row("parameters after", f"{self.parameters_after:,} ({added:+,})")
        table.add_row("training", f"{self.images_per_second:,.0f} images/s, {self.seconds:.1f} s")
        table.add_row("saved in", self.save_folder)
        (console or Console()).print(table)


def count_parameters(model: torch.nn.Module) -> int:
    """Count the parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def summarize(trainer: Trainer, parameters_before: int, save_folder: str) -> Summary:
    """Take a run's closing figures from its Trainer."""
    state = trainer.state
    seconds = state.timestamp.total_wct.total_seconds()
    return Summary(
        run_name=state.run_name,
        metrics={
            name: float(metric.compute())
            for metrics in state.eval_metrics.values()
            for name, metric in metrics.items()
        },
        attended_layers=len(attended_modules(state.model)),
        parameters_before=parameters_before,
        parameters_after=count_parameters(state.model),
        images_per_second=state.timestamp.sample.value / seconds if seconds else 0.0,
        seconds=seconds,
        save_folder=save_folder,
    )
