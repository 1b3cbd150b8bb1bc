"""Train the variants of a recipe, each in its own process, resuming interrupted ones."""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from composer_attn.errors import ConfigError
from composer_attn.runs.components.variants import Variant, make_variants
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.study.outlook import Outlook, in_words
from composer_attn.runs.study.processes import run_process
from composer_attn.runs.study.progress import Board, State
from composer_attn.runs.study.timing import LOG, not_timed, time_briefly, time_thoroughly
from composer_attn.runs.training.history import read_history
from composer_attn.runs.training.summary import FILE as SUMMARY

_RECIPE = "config.yaml"
_LOG = "train.log"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def digits_recipe() -> Path:
    """Return the default recipe of a study: handwritten digits, a small ResNet."""
    package = Path(__file__).parents[2]
    name = "digits_plain.yaml"
    # In a checkout the recipes are beside the package; a wheel contains this one.
    beside, inside = package.parent / "yamls" / name, package / "recipes" / name
    return beside if beside.is_file() else inside


def study(
    config: RunConfig,
    names: Sequence[str],
    seeds: int,
    out: Path,
    ranks: int = 1,
    imports: Sequence[str] = (),
) -> list[Variant]:
    """Train all variants of a recipe that are not trained yet, one after the other.

    Each is a run of ``composer-attn train`` in its own folder within ``out``: an interrupted run
    resumes from its last checkpoint, and one that has a summary is not run again.

    Args:
        config: the recipe.
        names: the variants: ``plain``, ``eca``, ``NAME=eca:kernel_size=3``.
        seeds: number of seeds.
        out: folder of the study.
        ranks: number of processes of each run, on this machine.
        imports: modules that register attentions, which each run imports first.

    Returns:
        The variants that failed; their output is in ``train.log`` in their folders.

    Raises:
        ArgumentError, ConfigError: nothing was trained.
    """
    return train_variants(make_variants(config, names, seeds, out), out, ranks, imports)


def train_variants(
    variants: Sequence[Variant],
    out: Path,
    ranks: int = 1,
    imports: Sequence[str] = (),
    timed: bool = True,
) -> list[Variant]:
    """Train runs that are not trained yet, as :func:`study` does; ``out`` contains their folders.

    At the end, if ``timed``, steps of all variants are timed in turns.

    Raises:
        ConfigError: nothing was trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message = "starts the processes of its runs itself: composer-attn study --ranks N"
        raise ConfigError(Mistake("study", message))
    with _lock(out) as lock, _ended_by_signals():
        for variant in variants:
            _check_recipe(variant)
        outlook = _look_ahead(variants, out, ranks, lock, imports)
        failed = _train_all(variants, Board(variants, outlook=outlook), ranks, lock, imports)
        trained = not_timed(variants)
        if timed and trained and variants[0].config.parallelism == "ddp":
            print("measuring the speed of all variants in turns", flush=True)
            if not time_thoroughly(trained, out, ranks, lock, imports):
                print(f"the speed was not measured: {out / LOG} says why")
    return failed


def _train_all(
    variants: Sequence[Variant], board: Board, ranks: int, lock: int, imports: Sequence[str]
) -> list[Variant]:
    """Train the runs that are not trained yet, and return those that failed."""
    failed = []
    with board:
        for variant in variants:
            if (variant.folder / SUMMARY).is_file():
                board.show(variant, State.DONE)
            elif _train(variant, board, ranks, lock, imports) != 0:
                board.show(variant, State.FAILED)
                failed.append(variant)
            else:
                board.show(variant, State.DONE)
    return failed


def _look_ahead(
    variants: Sequence[Variant], out: Path, ranks: int, lock: int, imports: Sequence[str]
) -> Outlook | None:
    """Time a few steps of the variants that are to be trained, and print how long they all take."""
    waiting = [variant for variant in variants if not (variant.folder / SUMMARY).is_file()]
    if not waiting or variants[0].config.parallelism != "ddp":
        return None
    times = time_briefly(waiting, out, ranks, lock, imports)
    batches = {v.folder: m.batch for v in waiting for m in read_history(v.folder)}
    outlook = Outlook(waiting, times, batches)
    total = outlook.total(0.0)
    if total is None:
        return None
    print(f"{len(waiting)} runs to train, which take about {in_words(total)}", flush=True)
    return outlook


def _train(variant: Variant, board: Board, ranks: int, lock: int, imports: Sequence[str]) -> int:
    """Train one variant, and return its exit code."""
    variant.folder.mkdir(parents=True, exist_ok=True)
    recipe = variant.folder / _RECIPE
    OmegaConf.save(OmegaConf.structured(variant.config), recipe)
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "composer.cli.launcher", "-n", str(ranks)]
    imported = [word for module in imports for word in ("--import", module)]
    command += ["-m", "composer_attn", *imported, "train", str(recipe)]
    return run_process(
        command,
        variant.folder / _LOG,
        lock,
        while_running=lambda: board.show(variant, State.TRAINING),
    )


def _check_recipe(variant: Variant) -> None:
    """Check that an existing run in a variant's folder was started with the same config.

    Raises:
        ConfigError: it was not.
    """
    path = variant.folder / _RECIPE
    if not path.is_file():
        return
    before: Any = OmegaConf.to_container(OmegaConf.load(path))
    text = OmegaConf.to_yaml(asdict(variant.config))
    now: Any = OmegaConf.to_container(OmegaConf.create(text))
    # An earlier version may not have known a key: its default is what the run was started with.
    before = asdict(RunConfig()) | before
    differing = [key for key in now if now[key] != before[key]]
    if differing:
        keys = ", ".join(f"{key} ({before[key]} there, {now[key]} here)" for key in differing)
        message = f"was begun with another config: {keys}; name another folder with --out"
        raise ConfigError(Mistake("", message, str(variant.folder)))


@contextmanager
def _lock(out: Path) -> Iterator[int]:
    """Lock a study's folder, so that no two studies train the same run.

    Raises:
        ConfigError: it is locked, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise ConfigError(Mistake("--out", f"cannot be written: {error}")) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"a study (or a run that one left behind) is still training in {out}"
            raise ConfigError(Mistake("--out", message)) from None
        yield file.fileno()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM as on Ctrl-C, so that the current run ends as well.

    Importing Composer installs handlers that end the process silently.
    """
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
