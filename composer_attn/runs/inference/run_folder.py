"""Locate a run on disk: its config, and the checkpoint to use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

from composer_attn.errors import ArgumentError, CheckpointError, ConfigError
from composer_attn.runs.components.config_check import write_out
from composer_attn.runs.components.registry import ALGORITHMS, dataset_kind, model_kind
from composer_attn.runs.config.config_errors import Mistake, at
from composer_attn.runs.config.schema import ConfigFile, RunConfig, load_config
from composer_attn.runs.tasks.table import find_task
from composer_attn.runs.training.checkpoint_saver import LATEST, checkpoints_in
from composer_attn.runs.training.history import Moment, read_history

CONFIG = "config.yaml"
# Config keys that may be changed for evaluation and export.
CHANGEABLE = ("eval_dataset", "batch_size", "device", "precision")
_BATCH = re.compile(r"-ba(\d+)-")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        folder: the run's folder.
        checkpoint: the file of the weights to use.
        config: the config that it was trained with, with overrides applied.
    """

    folder: Path
    checkpoint: Path
    config: RunConfig


def open_run(
    path: str | Path, checkpoint: str | Path = "best", overrides: Sequence[str] = ()
) -> RunFolder:
    """Locate a run by its folder, or by a checkpoint in it.

    Args:
        path: the folder, or one of its checkpoints.
        checkpoint: ``best``, ``last``, or a file; ignored if ``path`` is a checkpoint.
        overrides: ``key=value`` for keys in :data:`CHANGEABLE`.

    Raises:
        ArgumentError: there is no run, or an override has another key.
        CheckpointError: the run has no checkpoint.
        ConfigError: its config cannot be read, or names something unknown.
    """
    folder, found = Path(path), Path(checkpoint)
    if folder.is_file():
        folder, found = folder.parent, folder
    _check_folder(folder)
    config = _read_config(folder, overrides)
    if str(found) in ("best", "last"):
        metric = find_task(config.task).headline.name
        found = _choose(folder, metric, best=str(found) == "best")
    elif not found.is_file():
        raise ArgumentError(f"checkpoint must be best, last or a file; there is no file {found}")
    return RunFolder(folder, found, config)


def _check_folder(folder: Path) -> None:
    if (folder / CONFIG).is_file():
        return
    if not folder.is_dir():
        raise ArgumentError(f"there is no run {folder}: no such folder or file")
    inside = sorted(each.parent.name for each in folder.glob(f"*/{CONFIG}"))
    hint = f"; the runs {', '.join(inside[:3])} are inside" if inside else ""
    raise ArgumentError(f"{folder} is no run: it holds no {CONFIG}{hint}")


def _read_config(folder: Path, overrides: Sequence[str]) -> RunConfig:
    wrong = [text for text in overrides if re.split(r"[.=\[]", text)[0] not in CHANGEABLE]
    if wrong:
        raise ArgumentError(
            f"of a trained run only {', '.join(CHANGEABLE)} can be another; got {wrong[0]!r}"
        )
    file: ConfigFile = load_config(folder / CONFIG, overrides)
    config = file.config
    write_out(config)
    mistakes = list(file.mistakes) + file.located(_unknown_components(config))
    if mistakes:
        raise ConfigError(*mistakes)
    return config


def _unknown_components(config: RunConfig) -> list[Mistake]:
    """Return errors for components of the config that are not registered in this process."""
    with at("task"):
        task = find_task(config.task)
    mistakes = model_kind(task).check("model", config.model)
    mistakes += ALGORITHMS.check_all("algorithms", config.algorithms)
    if config.eval_dataset is not None:
        mistakes += dataset_kind(task).check("eval_dataset", config.eval_dataset)
    return mistakes


def _choose(folder: Path, metric: str, best: bool) -> Path:
    """Return the best of the saved checkpoints by a metric if ``best``, else the last."""
    found = checkpoints_in(folder)
    if not found:
        latest = folder / LATEST.format(rank=0)
        if latest.is_file():
            return latest
        raise CheckpointError(
            f"{folder} holds no checkpoint: the run has not come to its first, or saves elsewhere"
        )
    if not best:
        return found[-1]
    evaluated = {m.batch: m for m in read_history(folder) if m.kind == "eval"}
    scores = [
        (_score(evaluated[batch], metric), batch, path)
        for path in found
        if (batch := _batch_of(path)) in evaluated
    ]
    known = [score for score in scores if isfinite(score[0][0])]
    return max(known)[2] if known else found[-1]


def _batch_of(path: Path) -> int:
    match = _BATCH.search(path.name)
    return int(match[1]) if match else -1


def _score(moment: Moment, metric: str) -> tuple[float, float]:
    """Return a sort key: the metric, then lower loss."""
    loss = moment.figures.get("cross_entropy", inf)
    return moment.figures.get(metric, -inf), -loss if isfinite(loss) else -inf
