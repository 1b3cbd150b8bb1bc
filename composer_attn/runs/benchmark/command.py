"""The benchmark command: find the network, measure it, print and write the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from composer_attn.errors import ArgumentError
from composer_attn.runs.benchmark.machine import machine
from composer_attn.runs.benchmark.measure import Row, check_settings, measure
from composer_attn.runs.benchmark.results import check_library, show, write_results
from composer_attn.runs.benchmark.subject import find_subject

_VERSIONS = ("torch", "torchvision", "timm", "onnxruntime", "composer-attn")


def run_benchmark(
    model: str,
    algorithm: str | None,
    arguments: Mapping[str, Any],
    image: str | None,
    batches: Sequence[int],
    device: str,
    rounds: int,
    variants: Sequence[str],
    output: Path,
) -> list[Row]:
    """Measure a network, printing a table per batch size, and write the results to a folder.

    Args:
        model, algorithm, arguments, image: as for
            :func:`~composer_attn.runs.benchmark.subject.find_subject`.
        batches, device, rounds, variants: as for
            :func:`~composer_attn.runs.benchmark.measure.measure`.
        output: the folder.

    Raises:
        ComposerAttnError: an argument is invalid, before anything is measured; or the folder cannot
            be written.
    """
    check_settings(batches, device, rounds, variants)
    check_library()
    subject = find_subject(model, algorithm, arguments, image)
    settings = machine(device, _VERSIONS, threads=torch.get_num_threads()) | {
        "model": subject.name,
        "attention": subject.attention,
        "image": "x".join(map(str, subject.image)),
        "rounds": rounds,
    }
    print("{model}, {attention}, images {image}, {device}, threads: {threads}".format(**settings))
    rows: list[Row] = []
    for found in measure(subject, batches, device, rounds, variants):
        show(found)
        rows += found
    write_results(rows, settings, output)
    return rows


def parse_batches(text: str) -> list[int]:
    """Parse batch sizes separated by commas.

    Raises:
        ArgumentError: one is not a whole number.

    Example:
        >>> parse_batches("1,8,64")
        [1, 8, 64]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ArgumentError(f"batch must be whole numbers >= 1, like 1,8,64; got {text!r}")
    return [int(part) for part in parts]
