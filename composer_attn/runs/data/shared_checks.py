"""Checks of many files, of which each rank does a part."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from composer.utils import dist

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def map_over_ranks(check: Callable[[_Item], _Found], items: Sequence[_Item]) -> list[_Found]:
    """Apply a function to each item once in all ranks, in threads; return all results to each rank.

    Call it on every rank with the same items. Without other ranks, this one does all.

    Args:
        check: reads a file, say, and returns what is wrong with it; raises nothing.
        items: what to check.

    Example:
        >>> map_over_ranks(abs, [-1, 2, -3])
        [1, 2, 3]
    """
    joined = dist.is_initialized()
    rank, ranks = (dist.get_global_rank(), dist.get_world_size()) if joined else (0, 1)
    with ThreadPoolExecutor() as threads:  # decoding images leaves Python's lock
        own = list(threads.map(check, items[rank::ranks]))
    parts: list[list[_Found]] = dist.all_gather_object(own) if joined else [own]
    return [parts[index % ranks][index // ranks] for index in range(len(items))]
