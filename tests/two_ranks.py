"""Run a function in two processes that are connected by gloo."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def on_two_ranks(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """Call a function of a module with each rank; return both results."""
    multiprocessing.spawn(_rank, (function, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _rank(rank: int, function: Callable[[int], Any], folder: str) -> None:
    # Composer compares these with the process group, and other tests of a process set them.
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        torch.save(function(rank), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()
