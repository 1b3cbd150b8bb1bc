"""The attributes of a batch norm that can be set after it was built, in all combinations."""

import itertools

import torch
from torch import nn

TABLE = {
    "track_running_stats": [True, False],
    "num_batches_tracked": [0, 5, None],
    "momentum": [0.3, None, 0.0, 1],
    "running": ["both", "neither", "mean", "variance"],
    "affine": ["both", "neither", "weight", "bias"],
    "eps": [1e-5, 0.5],
}
ROWS = [dict(zip(TABLE, row, strict=True)) for row in itertools.product(*TABLE.values())]
# Each combination of settings of the statistics, with one of the other settings at a time.
SOME = [ROWS[8 * i + i % 8] for i in range(len(ROWS) // 8)]


def changed(norm: nn.Module, row: dict) -> None:
    """Set a norm's attributes after it was built."""
    norm.track_running_stats, norm.momentum = row["track_running_stats"], row["momentum"]
    norm.eps = row["eps"]
    batches = row["num_batches_tracked"]
    norm.num_batches_tracked = None if batches is None else torch.tensor(batches)
    if row["running"] in ("neither", "variance"):
        norm.running_mean = None
    if row["running"] in ("neither", "mean"):
        norm.running_var = None
    norm.affine = row["affine"] == "both"
    if row["affine"] in ("neither", "bias"):
        norm.weight = None
    if row["affine"] in ("neither", "weight"):
        norm.bias = None
