"""Read the files of runs, complete or not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from composer_attn.callbacks import excitations
from composer_attn.callbacks.excitations import Excitations
from composer_attn.errors import ConfigError
from composer_attn.runs.components.variants import PLAIN, attention_of
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.tasks.table import task_in
from composer_attn.runs.tasks.task import Task
from composer_attn.runs.training import history, step_times, summary
from composer_attn.runs.training.history import Moment, read_history
from composer_attn.runs.training.predictions import Predictions, read_predictions
from composer_attn.runs.training.step_history import Step, read_steps
from composer_attn.runs.training.step_times import StepTimes, read_step_times

CONFIG = "config.yaml"
_TRACES = (CONFIG, summary.FILE, history.FILE)

# Keys of a config that may differ between runs of the same recipe.
_FREE = {
    "run_name", "variant", "seed", "save_folder", "save_interval", "save_num_checkpoints_to_keep",
    "callbacks", "loggers", "autoresume", "load_path", "dist_timeout", "eval_interval",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A run as read from its folder.

    Attributes:
        folder: its folder.
        config: its config; empty if it cannot be read.
        summary: its final figures; ``None`` if it is not finished.
        history: its losses and metrics over time.
        excitations: its recorded excitations, if it had a monitor.
        predictions: what it predicted for each evaluation image; ``None`` if not known.
        steps: loss and accuracy of its training steps.
        times: times of its steps, measured in turns with those of other runs, if they were.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    history: tuple[Moment, ...]
    excitations: Excitations | None
    predictions: Predictions | None = None
    times: StepTimes | None = None
    steps: tuple[Step, ...] = ()

    @property
    def task(self) -> Task:
        """The task of the run."""
        return task_in(self.config)

    @property
    def attention(self) -> dict[str, Any]:
        """The attentions of the run, with their arguments."""
        return attention_of(self.config.get("algorithms") or {})

    @property
    def variant(self) -> str:
        """``plain``, or the names of its attentions; without a config, the run's own name."""
        if not self.config:
            return str((self.summary or {}).get("run_name", self.folder.name))
        return "+".join(self.attention) or PLAIN

    @property
    def given_name(self) -> str | None:
        """The name that the user gave its variant, if any."""
        given = self.config.get("variant")
        return None if given is None else str(given)

    @property
    def name(self) -> str:
        """Short name of the run for messages."""
        seed = self.config.get("seed")
        variant = self.given_name or self.variant
        return variant if seed is None else f"{variant}, seed {seed}"

    def moments(self, kind: str, figure: str) -> list[tuple[Moment, float]]:
        """List the moments of a kind that have a figure, with its values."""
        found = [(m, m.figures[figure]) for m in self.history if figure in m.figures]
        return [(moment, value) for moment, value in found if moment.kind == kind]

    @property
    def counts(self) -> tuple[int, int] | None:
        """The number of images classified correctly, and of all, at the final evaluation.

        ``None`` if not known, or if the predictions are not those of the final accuracy.
        """
        accuracy, found = self.metric("accuracy"), self.predictions
        if accuracy is None or found is None:
            return None
        right, images = int(found.right.sum()), len(found.labels)
        return (right, images) if abs(right / images - accuracy) < 0.5 / images else None

    def metric(self, name: str) -> float | None:
        """Return a final metric; ``None`` if it is missing or not a finite number."""
        value = ((self.summary or {}).get("metrics") or {}).get(name)
        return value if isinstance(value, (int, float)) and isfinite(value) else None


def find_records(folders: Sequence[Path]) -> list[Record]:
    """Read the runs in folders, each of which is a run or directly contains runs.

    Raises:
        ConfigError: a folder does not exist, or there is no run in any of them.
    """
    absent = [Mistake("", "there is no such folder", str(f)) for f in folders if not f.is_dir()]
    if absent:
        raise ConfigError(*absent)
    runs = []
    for folder in folders:
        inside = sorted(path for path in folder.iterdir() if _is_run(path))
        runs += [folder] if _is_run(folder) or not inside else inside
    if not any(_is_run(run) for run in runs):
        message = f"holds no run: nothing of {', '.join(_TRACES)}"
        raise ConfigError(*(Mistake("", message, str(folder)) for folder in folders))
    return [read_record(run) for run in dict.fromkeys(runs)]


def read_record(folder: Path) -> Record:
    """Read one run, ignoring missing or broken files."""
    return Record(
        folder=folder,
        config=_read(folder / CONFIG, yaml.safe_load) or {},
        summary=_read(folder / summary.FILE, json.loads),
        history=tuple(read_history(folder)),
        excitations=excitations.read(folder),
        predictions=read_predictions(folder),
        times=read_step_times(folder / step_times.FILE),
        steps=tuple(read_steps(folder)),
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TRACES)


def _read(path: Path, parse: Any) -> dict[str, Any] | None:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def recipe_of(record: Record) -> str:
    """Return a key that identifies a run's recipe apart from attention.

    Each run without a config has its own.
    """
    if not record.config:
        return str(record.folder)
    return json.dumps(recipe_values(record.config), sort_keys=True, default=str)


def recipe_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config that comparable runs should have in common."""
    values = {key: value for key, value in config.items() if key not in _FREE}
    values.setdefault("task", task_in(config).name)  # earlier versions wrote none
    algorithms = values.get("algorithms") or {}
    attention = attention_of(algorithms)
    values["algorithms"] = {n: a for n, a in algorithms.items() if n not in attention}
    return values
