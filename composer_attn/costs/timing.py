"""Interleaved timing of several actions, and ratios between them."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def take_turns(
    actions: Sequence[Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Time actions in interleaved rounds, each of which starts with a different action.

    Args:
        actions: the actions.
        rounds: number of rounds.
        clock: ``time.thread_time`` leaves out what other processes take on a busy machine.

    Returns:
        For each action, its times in seconds, one per round.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    for number in range(rounds):
        for place in range(len(actions)):
            index = (number + place) % len(actions)
            seconds[index].append(timed(actions[index], clock))
    return seconds


def take_turns_for(
    seconds: float, actions: Sequence[Callable[[], Any]], fewest: int = 3, most: int = 60
) -> list[list[float]]:
    """Do the same, in as many rounds as the seconds allow, from ``fewest`` to ``most``."""
    once = sum(timed(action) for action in actions)
    return take_turns(actions, max(fewest, min(most, int(seconds / max(once, 1e-6)))))


def timed(action: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that an action takes, including its work on a GPU."""
    synchronize()
    start = clock()
    action()
    synchronize()
    return clock() - start


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of at least two figures.

    Example:
        >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
        (2.0, 3.0, 4.0)
    """
    low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, median, high


def ratios(figures: list[float], base: list[float]) -> dict[str, float]:
    """Compare two actions round by round: the median ratio and its quartiles.

    Example:
        >>> ratios([2.0, 4.0, 9.0], [4.0, 4.0, 3.0])
        {'ratio': 1.0, 'ratio_lower_quartile': 0.75, 'ratio_upper_quartile': 2.0}
    """
    low, median, high = quartiles([a / b for a, b in zip(figures, base, strict=True)])
    return {
        "ratio": round(median, 3),
        "ratio_lower_quartile": round(low, 3),
        "ratio_upper_quartile": round(high, 3),
    }
