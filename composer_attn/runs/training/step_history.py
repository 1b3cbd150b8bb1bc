"""The loss and accuracy of a run's training steps over time, in ``steps.csv``."""

import csv
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from math import nan
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from composer_attn.errors import SaveError
from composer_attn.runs.training.checkpoint_saver import saving
from composer_attn.runs.training.history import History

FILE = "steps.csv"
_ROWS = 100  # rows of an epoch


@dataclass(frozen=True)
class Step:
    """The mean figures of one or several consecutive training steps.

    Attributes:
        batch: number of batches trained on so far.
        sample: number of images trained on so far, over all ranks.
        seconds: wall time of training so far, without evaluation and first steps.
        loss: mean loss.
        accuracy: mean share of images classified correctly, in training mode and as augmented;
            nan if the model does not measure it.
    """

    batch: int
    sample: int
    seconds: float
    loss: float
    accuracy: float


class StepHistory(Callback):
    """Records loss and accuracy while training, in about a hundred rows for each epoch.

    Args:
        history: the run's history, which has the time of its first steps; it comes before.
    """

    def __init__(self, history: History):
        self.history = history
        self._rows: list[Step] = []
        self._losses: list[float] = []
        self._accuracies: list[float] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        """Collect the figures of a step."""
        self._losses.append(state.total_loss_dict.get("loss/train/total", nan))
        self._accuracies.append(_accuracy(state))
        length = int(state.dataloader_len) if state.dataloader_len is not None else _ROWS
        if len(self._losses) >= max(1, length // _ROWS):
            self._add_row(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Write the rows of the epoch."""
        self._write(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the rows of a last, incomplete epoch."""
        self._write(state)

    def close(self, state: State, logger: Logger) -> None:
        """Write the rows of a run that was stopped."""
        with suppress(SaveError):
            self._write(state)

    def _add_row(self, state: State) -> None:
        now = state.timestamp
        seconds = now.total_wct.total_seconds() if now.total_wct else 0.0
        means = [sum(f) / len(f) for f in (self._losses, self._accuracies)]
        steady = seconds - self.history.startup
        self._rows.append(Step(now.batch.value, now.sample.value, steady, *means))
        self._losses, self._accuracies = [], []

    def _write(self, state: State) -> None:
        if self._losses:
            self._add_row(state)
        rows, self._rows = self._rows, []
        if not rows or dist.get_global_rank() != 0:
            return
        path = self.history.folder / FILE
        with saving(path):
            new = not path.is_file()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(field.name for field in fields(Step))
                writer.writerows([f"{value:.6g}" if isinstance(value, float) else value
                                  for value in astuple(row)] for row in rows)  # fmt: skip


def read_steps(folder: Path) -> list[Step]:
    """Read the steps of a run, without rows that were superseded after an interruption."""
    steps: list[Step] = []
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, UnicodeDecodeError):
        return steps
    for row in csv.reader(lines):
        try:
            batch, sample, *figures = row
            seconds, loss, accuracy = map(float, figures)
            step = Step(int(batch), int(sample), seconds, loss, accuracy)
        except ValueError:  # a partly written line
            continue
        while steps and steps[-1].batch >= step.batch:
            steps.pop()
        steps.append(step)
    return steps


def _accuracy(state: State) -> float:
    """Return the accuracy of the last batch, which Composer has just computed on all ranks."""
    metrics = state.train_metrics or {}
    found = [metric for name, metric in metrics.items() if name.endswith("Accuracy")]
    return float(found[0].compute()) if found and found[0].update_called else nan
