"""The losses and metrics of a run over time, appended line by line to ``history.jsonl``."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from omegaconf import OmegaConf

from composer_attn.errors import SaveError
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.data import Source
from composer_attn.runs.tasks.table import computed
from composer_attn.runs.training.checkpoint_saver import saving
from composer_attn.runs.training.class_names import write_class_names

FILE = "history.jsonl"


@dataclass(frozen=True)
class Moment:
    """The losses or metrics of a run at one point in time.

    Attributes:
        kind: ``train``, at the end of an epoch or of training, or ``eval``.
        batch: number of batches trained on so far.
        epoch: number of epochs completed so far.
        sample: number of images trained on so far, over all ranks.
        seconds: wall time of training so far, excluding evaluation.
        figures: for ``train``, the mean ``loss`` since the previous entry; for ``eval``, the
            metrics by name; nan if not finite.
        startup: part of ``seconds`` that the first step of each process took, which builds or
            compiles kernels.
    """

    kind: str
    batch: int
    epoch: int
    sample: int
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    startup: float = 0.0

    @property
    def steady_seconds(self) -> float:
        """Wall time of training so far without evaluation and without first steps."""
        return self.seconds - self.startup


class History(Callback):
    """Records the history of a run in its folder; from the first step on, also config and classes.

    Args:
        folder: the run's folder.
        config: the run's config.
        source: the data that it trains on.

    Attributes:
        startup: seconds of the first step of this process and of those before it.
        step_seconds: wall time of each later step of this process, with loading, without
            evaluation.
    """

    def __init__(self, folder: str, config: RunConfig, source: Source):
        self.folder = Path(folder)
        self.config = config
        self.source = source
        earlier = read_history(self.folder)  # of a run that is resumed
        self.startup = earlier[-1].startup if earlier else 0.0
        self.step_seconds: list[float] = []
        self._losses: list[float] = []
        self._begun = False

    def batch_end(self, state: State, logger: Logger) -> None:
        """Collect the loss of a step; after the first one, write the config and the classes."""
        self._losses.append(state.total_loss_dict.get("loss/train/total", nan))
        self._time(state)
        if not self._begun:
            self._begun = True
            self.write_config()
            write_class_names(self.folder, self.source)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Record the mean loss of the epoch."""
        self._add_losses(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Record the mean loss of a last, incomplete epoch."""
        self._add_losses(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Record the metrics of an evaluation."""
        metrics = state.eval_metrics.get(state.dataloader_label or "", {})
        self._add("eval", state, computed(metrics))

    def close(self, state: State, logger: Logger) -> None:
        """Record an epoch after whose last batch the run was stopped.

        A resumed run begins with the next epoch, and never ends that one.
        """
        if self._losses and state.timestamp.batch_in_epoch == state.dataloader_len:
            with suppress(SaveError):
                self._add_losses(state, ended=1)

    def write_config(self) -> None:
        """Write ``config.yaml`` with all interpolations resolved."""
        if dist.get_global_rank() == 0:
            path = self.folder / "config.yaml"
            with saving(path):
                OmegaConf.save(OmegaConf.structured(self.config), path)

    def _time(self, state: State) -> None:
        """Add the time of a step to that of starting up, or to those of steps after it."""
        now = state.timestamp
        seconds = now.batch_wct.total_seconds() if now.batch_wct else 0.0
        if self._begun:
            self.step_seconds.append(seconds)
            return
        earlier = [m for m in read_history(self.folder) if m.batch < now.batch.value]
        self.startup = seconds + (earlier[-1].startup if earlier else 0.0)

    def _add_losses(self, state: State, ended: int = 0) -> None:
        if self._losses:
            figures = {"loss": sum(self._losses) / len(self._losses)}
            self._add("train", state, figures, ended)
            self._losses = []

    def _add(self, kind: str, state: State, figures: dict[str, float], ended: int = 0) -> None:
        # ``ended`` counts epochs that are over, and that Composer does not count yet.
        if dist.get_global_rank() != 0:
            return
        now = state.timestamp
        seconds = now.total_wct.total_seconds() if now.total_wct else 0.0
        counts = (now.batch.value, now.epoch.value + ended, now.sample.value)
        # JSON has no nan: null represents non-finite numbers.
        kept = {name: value if isfinite(value) else None for name, value in figures.items()}
        path = self.folder / FILE
        with saving(path), path.open("a") as file:
            moment = Moment(kind, *counts, seconds, figures, self.startup)
            values = asdict(moment) | {"figures": kept}
            file.write(json.dumps(values) + "\n")


def read_history(folder: Path) -> list[Moment]:
    """Read the history of a run, without entries that were superseded after an interruption."""
    moments: list[Moment] = []
    try:
        lines = (folder / FILE).read_text().splitlines()
    except OSError:
        return moments
    for line in lines:
        try:
            moment = _moment(json.loads(line))
        except (ValueError, TypeError):  # a partly written line
            continue
        again = (moment.batch, moment.kind == "eval")
        moments = [m for m in moments if (m.batch, m.kind == "eval") < again]
        moments.append(moment)
    return moments


def _moment(values: dict[str, Any]) -> Moment:
    figures = {n: nan if v is None else float(v) for n, v in values.pop("figures").items()}
    return Moment(**values, figures=figures)
