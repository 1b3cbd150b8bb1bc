"""Run everything that needs a CUDA device: its benchmarks in docs/benchmarks.md, and its tests.

python -m benchmarks.cuda --seconds 400
"""

import csv
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common import RATIO, RESULTS, show

_NETWORK = "--device cuda --precision bf16 --layout channels_last --image 224"
_COMPILED = "plain_compiled,composer_se_compiled,se_compiled,eca_compiled"
_OWN = "efficientnet_b0"
_SETTLED = "--rounds 40"
_LOG = "cuda.log"


@dataclass(frozen=True)
class Task:
    """One command. The most important ones come first, in case time runs out.

    Attributes:
        name: its name for ``--only``.
        command: a module for ``python -m``, with its options.
        rows: the CSV file that it appends to, if any.
        most: stop it after so many seconds.
    """

    name: str
    command: str
    rows: str = ""
    most: float = math.inf


TASKS = (
    Task("step", f"benchmarks.train_step {_NETWORK} --batch 256 --variants eager",
         "train_step.csv"),
    Task("own",
         f"benchmarks.train_step {_NETWORK} --batch 256 --model {_OWN} --variants with_own",
         "train_step.csv"),
    Task("tests", "pytest -v -n 14 -p no:cacheprovider --durations=8 tests/devices",
         most=150),
    Task("passes", "benchmarks.passes --dtype bfloat16 --layout channels_last", "passes.csv"),
    Task("op", "benchmarks.op --device cuda --dtype bfloat16 --layout channels_last", "op.csv"),
    Task("single", f"benchmarks.inference {_NETWORK} --batch 1 {_SETTLED}", "inference.csv"),
    Task("many", f"benchmarks.inference {_NETWORK} --batch 256 {_SETTLED}", "inference.csv"),
    Task("compiled",
         f"benchmarks.train_step {_NETWORK} --batch 256 --steps 10 --variants {_COMPILED}",
         "train_step.csv"),
    Task("nchw", "benchmarks.passes --dtype float32 --layout nchw", "passes.csv"),
)  # fmt: skip


def carry_out(task: Task, folder: Path, seconds: float) -> str:
    """Run a task and append its output to a log in ``folder``; return how it ended."""
    command = [sys.executable, "-m", *task.command.split()]
    if task.rows:
        command += ["--results", str(folder / task.rows)]
    began = time.perf_counter()
    with (
        (folder / _LOG).open("a") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as running,
    ):
        try:
            code = running.wait(min(seconds, task.most))
            end = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            end = "stopped: out of time"
            running.send_signal(signal.SIGINT)  # pytest then prints what it has found
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()
    return f"{end} after {time.perf_counter() - began:.0f} s"


def _steps(path: Path) -> Iterator[list[str]]:
    with path.open() as file:
        for row in csv.DictReader(file):
            ratio = {name: float(value) for name, value in row.items() if name.startswith("ratio")}
            yield [
                row["model"],
                row["variant"],
                row["step_ms"],
                RATIO.format(**ratio),
                row["saved_ratio"],
            ]


def main(
    seconds: Annotated[float, typer.Option(help="Stop after this many seconds.")] = 540,
    only: Annotated[str, typer.Option(help="Names of tasks, separated by commas.")] = "",
    results: Annotated[Path, typer.Option(help="Folder of the CSV files and logs.")] = RESULTS,
) -> None:
    """Run the CUDA tests and benchmarks one after another, and print a summary."""
    unknown = set(filter(None, only.split(","))) - {task.name for task in TASKS}
    if unknown:
        names = ", ".join(task.name for task in TASKS)
        raise typer.BadParameter(f"no task {', '.join(sorted(unknown))}; there are {names}")
    results.mkdir(parents=True, exist_ok=True)
    (results / _LOG).unlink(missing_ok=True)
    until, ends = time.monotonic() + seconds, {}
    for task in TASKS:
        if only and task.name not in only.split(","):
            continue
        left = until - time.monotonic()
        ends[task.name] = carry_out(task, results, left) if left > 0 else "no time left"
        print(task.name, ends[task.name], flush=True)
        if not ends[task.name].startswith("done") and left > 0:
            print((results / _LOG).read_text()[-3000:], flush=True)
    steps = results / "train_step.csv"
    if steps.exists():
        columns = ("model", "network", "step, ms", "ratio to plain (quartiles)", "kept / plain")
        show("Training on CUDA", columns, list(_steps(steps)))
    show("CUDA", ("task", "end"), [list(each) for each in ends.items()])
    raise typer.Exit(any(not end.startswith("done") for end in ends.values()))


if __name__ == "__main__":
    typer.run(main)
