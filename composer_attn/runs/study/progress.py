"""Progress display of a study: a live table, or lines if there is no terminal."""

import time
from collections.abc import Sequence
from enum import Enum

from rich.console import Console
from rich.live import Live
from rich.table import Table

from composer_attn.runs.components.variants import Variant
from composer_attn.runs.study.outlook import Outlook, in_words
from composer_attn.runs.tasks.table import find_task
from composer_attn.runs.training.history import read_history


class State(Enum):
    """State of a run."""

    WAITING = "waiting"
    TRAINING = "training"
    DONE = "done"
    FAILED = "failed"


class Board:
    """A table of a study's runs, shown while its context is active.

    Args:
        variants: the runs.
        console: the console to print to.
        outlook: how long the runs take; not shown without one.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        console: Console | None = None,
        outlook: Outlook | None = None,
    ):
        self.console = console or Console()
        self.outlook = outlook
        self._rows = {variant.folder: ["", "", "", ""] for variant in variants}
        self._variants = variants
        self._states = dict.fromkeys(self._rows, State.WAITING)
        self._headline = find_task(variants[0].config.task).headline if variants else None
        self._names = ("epoch", self._headline.label if self._headline else "", "loss")
        self._began: dict[object, float] = {}
        self._live = Live(console=self.console, auto_refresh=False, get_renderable=self.table)

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def show(self, variant: Variant, state: State) -> None:
        """Update the state of a run."""
        key = variant.folder
        row = self._row(variant, state)
        changed = (row[:3], state) != (self._rows[key][:3], self._states[key])
        self._rows[key], self._states[key] = row, state
        if self.console.is_terminal:
            self._live.refresh()
        elif changed:
            told = [f"{n} {v}" for n, v in zip(self._names, row[:3], strict=True) if v]
            told += [f"{left} left"] if (left := self._left()) else []
            line = ", ".join([f"{variant.name}, seed {variant.seed}: {state.value}", *told])
            self.console.print(line, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """Return the current table."""
        left = self._left()
        title = f"study, {left} left" if left else "study"
        table = Table("variant", "seed", "state", title=title, title_justify="left")
        for name in (*self._names, "time", *(["left"] if self.outlook else [])):
            table.add_column(name, justify="right")
        for variant in self._variants:
            state = self._states[variant.folder]
            cells = [variant.name, str(variant.seed), state.value, *self._rows[variant.folder]]
            if self.outlook:
                seconds = self.outlook.left(variant.folder, time.monotonic())
                cells.append(in_words(seconds) if seconds else "")
            styles = {State.TRAINING: "bold", State.WAITING: "dim", State.FAILED: "red"}
            table.add_row(*cells, style=styles.get(state))
        return table

    def _left(self) -> str:
        seconds = self.outlook.total(time.monotonic()) if self.outlook else None
        return f"about {in_words(seconds)}" if seconds else ""

    def _row(self, variant: Variant, state: State) -> list[str]:
        now, batch = time.monotonic(), 0
        began = self._began.setdefault(variant.folder, now)
        row = ["", "", "", f"{now - began:.0f} s"]
        for moment in read_history(variant.folder):
            batch = moment.batch
            if moment.kind == "train":
                row[0], row[2] = str(moment.epoch), f"{moment.figures['loss']:.3f}"
            elif self._headline and self._headline.name in moment.figures:
                row[1] = f"{moment.figures[self._headline.name]:.1%}"
        if self.outlook:
            ended = state in (State.DONE, State.FAILED)
            self.outlook.note(variant.folder, batch, now, ended)
        return row
