"""Shared by the benchmarks: interleaved timing, ratios, memory, environment, tables, CSV rows."""

import csv
import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from composer_attn.costs.memory import saved_bytes
from composer_attn.costs.timing import ratios, synchronize, take_turns, timed
from composer_attn.runs.benchmark.machine import machine

__all__ = [
    "RATIO",
    "RESULTS",
    "Device",
    "Layout",
    "Precision",
    "append",
    "empty_compile_cache",
    "machine",
    "mebibytes",
    "peak_bytes",
    "ratios",
    "saved_bytes",
    "show",
    "surroundings",
    "synchronize",
    "take_turns",
    "timed",
]

RESULTS = Path(__file__).parent / "results"
# Formats the result of `ratios`.
RATIO = "{ratio:.2f} ({ratio_lower_quartile:.2f} to {ratio_upper_quartile:.2f})"
_VERSIONS = ("torch", "torchvision", "timm", "mosaicml", "composer-attn")
_MIB = 2**20


class Device(str, Enum):
    """Device to run on."""

    CPU = "cpu"
    CUDA = "cuda"


class Layout(str, Enum):
    """Memory format of weights and images."""

    NCHW = "nchw"
    CHANNELS_LAST = "channels_last"

    @property
    def memory_format(self) -> torch.memory_format:
        """The corresponding ``torch.memory_format``."""
        last = self is Layout.CHANNELS_LAST
        return torch.channels_last if last else torch.contiguous_format


class Precision(str, Enum):
    """Float32, or autocast to 16 bits."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    def autocast(self, device: str) -> AbstractContextManager:
        """Return the context manager to run a forward pass in."""
        if self is Precision.FP32:
            return nullcontext()
        dtype = torch.bfloat16 if self is Precision.BF16 else torch.float16
        return torch.autocast(device, dtype)


@contextmanager
def empty_compile_cache() -> Iterator[None]:
    """Give torch.compile an empty cache."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        yield


def peak_bytes(action: Callable[[], Any], device: str) -> int:
    """Measure how much memory use rises during an action, as torch's allocator counts it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Not the process's memory: what malloc gets back, it does not return to the system at once.
    with torch.profiler.profile(profile_memory=True) as profile:
        action()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate((change for _, change in changes), initial=0))


def mebibytes(count: int) -> str:
    """Format bytes as MiB with one decimal."""
    return f"{count / _MIB:,.1f}"


def surroundings(device: str) -> dict[str, Any]:
    """Describe the machine and the versions of the packages involved."""
    return machine(device, _VERSIONS, threads=torch.get_num_threads())


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is never wrapped to a narrow terminal."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=max(100, Console().width)).print(table)


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, with a header if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)
