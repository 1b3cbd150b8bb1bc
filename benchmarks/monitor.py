"""What does the excitation monitor cost a training step?

python -m benchmarks.monitor
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from composer import Callback, Trainer
from composer.models import ComposerClassifier
from rich.console import Console
from rich.table import Table

from benchmarks import common
from composer_attn import ECA, ExcitationMonitor, SqueezeExcite
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.synthetic import synthetic
from composer_attn.runs.models import build_model

_RESULTS = common.RESULTS / "monitor.csv"
_VERSIONS = ("torch", "torchvision", "mosaicml", "composer-attn")
_ALGORITHMS = {"squeeze_excite": SqueezeExcite, "eca": ECA}
_CLASSES = 10


class Stopwatch(Callback):
    """Time every step, from the event before it to the event after it."""

    def __init__(self):
        self.seconds: list[float] = []
        self._start = 0.0

    def batch_start(self, state, logger) -> None:
        """Start timing."""
        self._start = _now()

    def batch_end(self, state, logger) -> None:
        """Stop timing. Composer runs callbacks in the order of their list; this one is last."""
        self.seconds.append(_now() - self._start)


def _now() -> float:
    common.synchronize()
    return time.perf_counter()


def measure(
    network: str, attention: str, batch_size: int, size: int, steps: int, device: str
) -> tuple[list[float], list[float]]:
    """Train with a monitor that observes every second step; return unwatched and watched times.

    Alternating steps spreads other load on the machine evenly over both. The first ten steps are
    not counted.
    """
    model: ComposerClassifier = build_model({"name": network, "num_classes": _CLASSES})
    source = synthetic(num_samples=4 * batch_size, num_classes=_CLASSES, size=size)
    stopwatch = Stopwatch()
    trainer = Trainer(
        model=model,
        train_dataloader=build_loader(source, batch_size, train=True, seed=0),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
        algorithms=[_ALGORITHMS[attention]()],
        # In this order, the monitor's events fall between those of the stopwatch.
        callbacks=[ExcitationMonitor("2ba"), stopwatch],
        max_duration=f"{steps + 10}ba",
        progress_bar=False,
        device=device,
        seed=0,
    )
    trainer.fit()
    trainer.close()
    counted = stopwatch.seconds[10:]
    return counted[0::2], counted[1::2]


def compare(without: list[float], watched: list[float], interval: int) -> dict[str, float]:
    """Compare steps in pairs: the extra cost of a watched step, and its share at an interval."""
    extra = [w / p - 1 for p, w in zip(without, watched, strict=True)]
    low, median, high = statistics.quantiles(extra, n=4, method="inclusive")
    return {
        "step_ms": round(statistics.median(without) * 1e3, 2),
        "watched_step_ms": round(statistics.median(watched) * 1e3, 2),
        "watched_step_extra": round(median, 4),
        "extra_lower_quartile": round(low, 4),
        "extra_upper_quartile": round(high, 4),
        "interval": interval,
        "cost": round(median / interval, 6),
    }


def main(
    network: Annotated[str, typer.Option(help="A model's name.")] = "resnet50",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 16,
    size: Annotated[int, typer.Option(min=8, help="Height and width of the images.")] = 64,
    steps: Annotated[int, typer.Option(min=8, help="Timed steps, half of them watched.")] = 80,
    interval: Annotated[int, typer.Option(min=1, help="Steps between watched ones.")] = 100,
    results: Annotated[Path, typer.Option(help="The CSV file to append to.")] = _RESULTS,
) -> None:
    """Measure what the monitor adds to a training step, alternating watched and unwatched steps."""
    device = "gpu" if torch.cuda.is_available() else "cpu"
    table = Table("attention", "step", "watched step", "extra (quartiles)", f"cost at {interval}ba")
    table.title = f"{network}, batch {batch_size} at {size}x{size}, {device}"
    rows = []
    for attention in _ALGORITHMS:
        surroundings = common.machine("cuda" if device == "gpu" else device, _VERSIONS)
        found = compare(*measure(network, attention, batch_size, size, steps, device), interval)
        settings = {"network": network, "attention": attention, "batch_size": batch_size}
        rows.append(surroundings | settings | {"size": size, "steps": steps} | found)
        quartiles = f"{found['extra_lower_quartile']:+.1%} to {found['extra_upper_quartile']:+.1%}"
        table.add_row(
            attention,
            f"{found['step_ms']:.1f} ms",
            f"{found['watched_step_ms']:.1f} ms",
            f"{found['watched_step_extra']:+.1%} ({quartiles})",
            f"{found['cost']:.3%}",
        )
    Console().print(table)
    common.append(results, rows)


if __name__ == "__main__":
    typer.run(main)
