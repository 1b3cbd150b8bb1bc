"""Compares the passes of the Triton kernels with the reference, and prints the errors as JSON."""

import json

import torch

from composer_attn.ops import kernels, passes
from tests.ops.regions import build, differences, distance, draw

SHAPES = [(3, 6, 5, 7), (2, 70, 9, 9), (1, 5, 1100), (2, 4, 3, 2, 3)]


def table(device: str) -> dict[str, tuple[float, float]]:
    """Return, by case, the largest relative difference and the one that is allowed."""
    found = {}
    for dtype, allowed in (
        (torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-7),
        (torch.float16, 2**-9),
    ):  # fmt: skip
        for shape in SHAPES if dtype == torch.float64 else SHAPES[:1]:
            for last in (False, True):
                for name, error in errors(shape, dtype, last, device).items():
                    found[f"{dtype} {shape} {last} {name}"] = (error, allowed)
    return found


def errors(shape, dtype, last, device) -> dict[str, float]:
    """Compare every pass in every variant."""
    dy, x, y = (draw(shape, dtype, last, mean=0).to(device) for _ in range(3))
    a, b, c, d, e = torch.randn(
        5, *shape[:2], dtype=passes.statistics_dtype(x), device=device
    ).unbind()
    calls = {"moments": ("moments", x)}
    for relu in (False, True):
        for shortcut in (None, y):
            calls[f"affine {relu} {shortcut is None}"] = ("affine", x, a, b, shortcut, relu)
    for name, mask in (("none", None), ("computed", (a, b)), ("output", y)):
        calls[f"sums {name}"] = ("gradient_sums", dy, x, c, mask)
        if name != "output":
            calls[f"input {name}"] = ("input_gradient", dy, x, a, c, d, e, mask)
    return {
        name: max(map(distance, _tuple(kernels, *call), _tuple(passes, *call)))
        for name, call in calls.items()
    }


def _tuple(module, name, *arguments) -> tuple[torch.Tensor, ...]:
    result = getattr(module, name)(*arguments)
    return result if isinstance(result, tuple) else (result,)


if __name__ == "__main__":
    found = table("cpu")
    shape = SHAPES[0]
    whole = differences(build(shape, relu=True, shortcut=True), shape, "triton", last=True)
    print(json.dumps(found | {"whole": (max(whole.values()), 1e-12)}))
