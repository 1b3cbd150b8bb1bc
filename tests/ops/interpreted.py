"""Compares the Triton kernels with the reference, and prints the errors as JSON."""

import json

import torch

from composer_attn.ops.backends import activated_reference as activated
from composer_attn.ops.backends import activated_triton_kernels, triton_kernels
from composer_attn.ops.backends import reference as passes
from tests.ops.calls import (
    ALLOWED,
    calls_between,
    calls_of_activations,
    calls_of_passes,
    errors,
    infinite_calls,
    spread,
    strided,
)
from tests.ops.regions import build, differences

# On a GPU, also sums over many positions and over many programs.
LARGE = [(2, 70, 33, 33), (700, 200, 3, 3)]
SHAPES = [(3, 6, 5, 7), (2, 70, 9, 9), (1, 5, 1100), (2, 4, 3, 2, 3)]
# Fewer and more samples and channels than a program handles; a kernel wider than the channels.
SIZES = [(1, 5), (70, 37), (3, 600)]


def table(device: str) -> dict[str, tuple[float, float]]:
    """Return the largest relative difference and the tolerance for each case."""
    gpu = device == "cuda"
    calls = {
        (dtype, *shape, last): calls_of_passes(shape, dtype, last, device)
        for dtype in ALLOWED
        for shape in (
            *(SHAPES if dtype == torch.float64 else SHAPES[:1]),
            *(LARGE if gpu else ()),
        )
        for last in (False, True)
    } | {
        (dtype, *size): calls_between(*size, dtype, device)
        for dtype in (torch.float64, torch.float32)
        for size in SIZES
    }
    if device == "cpu":
        calls[torch.float64, "strided"] = strided(
            calls_of_passes((2, 3, 3, 2), torch.float64, False, device)
            | calls_between(2, 3, torch.float64, device)
        )
    found = {
        f"{case} {name}": (error, ALLOWED[case[0]])
        for case, group in calls.items()
        for name, error in errors(group, triton_kernels, passes).items()
    }
    some = [torch.float64, torch.bfloat16] if device == "cpu" else ALLOWED
    found |= {
        f"{(dtype, *shape, last)} {name}": (error, ALLOWED[dtype])
        for dtype in some
        for shape in (SHAPES[0], *(LARGE if gpu else ()))
        for last in (False, True)
        for name, error in errors(
            calls_of_activations(shape, dtype, last, device), activated_triton_kernels, activated
        ).items()
    }
    infinite = spread(infinite_calls(3, 6, device), triton_kernels, passes)
    return found | {f"infinite {name}": (error, 1e-12) for name, error in infinite.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    found = table("cpu")
    shape = SHAPES[0]
    whole = differences(build(shape, relu=True, shortcut=True), shape, "triton", last=True)
    print(json.dumps(found | {"whole": (max(whole.values()), 1e-12)}))
