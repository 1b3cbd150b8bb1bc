"""Every function of a backend, called in every variant and compared with another backend."""

import copy
from types import ModuleType

import torch

from composer_attn.ops.activations import ACTIVATIONS, Activation
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.normalization import Running
from tests.ops.regions import distance, draw

# The largest relative difference of two backends.
ALLOWED = {
    torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9
}  # fmt: skip


def calls_between(samples: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, tuple]:
    """Call the functions between the passes in every variant, by name."""
    a, b, c, d = torch.randn(4, samples, channels, dtype=dtype, device=device).unbind()
    weight, bias, kept, width = torch.randn(4, channels, dtype=dtype, device=device)
    s, variance, mean = a.sigmoid(), 0.1 + b.square(), 3 + c
    mu, inverse, half = (s * mean).mean(0), width.abs() + 0.5, torch.bfloat16
    calls = {}
    for name, *of_norm, momentum, fixed in (
        ("affine", weight, bias, 0.1, False), ("plain", None, None, 0.1, False),
        ("fixed", weight, bias, 0, True), ("half", weight.to(half), bias.to(half), 1, False),
        ("cumulative", weight, bias, torch.tensor(0.5), False),
    ):  # fmt: skip
        running = Running(kept, width.square(), momentum, 49 * samples, fixed)
        calls[name] = ("normalization", s, mean, variance, *of_norm, 1e-5, running)
        calls[f"{name} gradient"] = (
            *("normalization_gradient", c, d, s, mean, variance, mu, inverse),
            *(of_norm[0], fixed),
        )
    calls["untracked"] = ("normalization", s, mean, variance, None, None, 1e-5, None)
    for size in (1, 3, 9):
        kernel = torch.randn(1, 1, size, dtype=dtype, device=device)
        calls[f"convolve {size}"] = ("convolve", a, kernel)
        calls[f"convolve {size} gradient"] = ("convolve_gradient", b, a, kernel)
    return calls


def calls_of_passes(shape, dtype, last, device) -> dict[str, tuple]:
    """Call every pass in every variant, by name."""
    dy, x, y = (draw(shape, dtype, last, mean=0).to(device) for _ in range(3))
    a, b, c, d, e = torch.randn(5, *shape[:2], dtype=statistics_dtype(x), device=device).unbind()
    calls = {"moments": ("moments", x)}
    for relu in (False, True):
        for shortcut in (None, y):
            calls[f"affine {relu} {shortcut is None}"] = ("affine", x, a, b, shortcut, relu)
    for name, mask in (("none", None), ("computed", (a, b)), ("output", y)):
        calls[f"sums {name}"] = ("gradient_sums", dy, x, c, mask)
        if name != "output":
            shift = mask and mask[1]
            calls[f"input {name}"] = ("input_gradient", dy, x, a, c, d, e, shift)
            calls[f"input fixed {name}"] = ("input_gradient", dy, x, a, c, d, None, shift)
    return calls


def calls_of_activations(
    shape, dtype, last, device, names: tuple[str, ...] = ACTIVATIONS
) -> dict[str, tuple]:
    """Call every pass that an activation takes part in, in every variant, by name."""
    dy, x, added = (draw(shape, dtype, last, mean=0).to(device) for _ in range(3))
    numbers = torch.randn(8, *shape[:2], dtype=statistics_dtype(x), device=device)
    # Deviations large enough to reach every branch of every activation.
    a, b, c, *rest, d_variance = (2 * numbers).unbind()
    calls = {}
    for name in names:
        activation = Activation(name, {"leaky_relu": 0.3, "elu": 0.7}.get(name, 0.0))
        calls[f"{name} means"] = ("activated_means", x, a, b, activation)
        for shortcut in (None, added):
            case = f"{name} {'added' if shortcut is added else 'alone'}"
            calls[case] = ("activate", x, a, b, c, shortcut, activation)
        for attended in (False, True):
            case = f"{name} sums {attended}"
            calls[case] = ("activated_sums", dy, x, c, a, b, activation, attended)
        for given in (None, d_variance):
            case = f"{name} gradient {given is None}"
            calls[case] = ("activated_gradient", dy, x, a, b, *rest, given, activation)
    return calls


def infinite_calls(samples: int, channels: int, device: str) -> dict[str, tuple]:
    """Call the functions that must not spread an infinite value, by name."""
    shape = (samples, channels, 3, 5)
    dy, x = (draw(shape, mean=0).to(device) for _ in range(2))
    x[0, 0, 1, 2] = torch.inf
    x[0, 1, 0, 0] = -torch.inf
    calls = calls_between(samples, channels, torch.float64, device)
    name, d_scale, d_shift, s, mean, *rest = calls["fixed gradient"]
    d_scale[0, 0], mean[0, 0] = torch.nan, torch.inf
    a, _, d, _, shift = torch.randn(5, *shape[:2], dtype=x.dtype, device=device).unbind()
    return {
        "moments": ("moments", x),
        "input": ("input_gradient", dy, x, a, mean, d, None, None),
        "input masked": ("input_gradient", dy, x, a, mean, d, None, shift),
        "fixed gradient": (name, d_scale, d_shift, s, mean, *rest),
    }


def strided(calls: dict[str, tuple]) -> dict[str, tuple]:
    """Give the arguments of calls unusual strides: columns, every other value, expanded."""
    return {
        f"{case} {way.__name__}": tuple(_each(argument, way) for argument in call)
        for case, call in calls.items()
        for way in (transposed, sliced, expanded, negated)
    }


def transposed(value: torch.Tensor) -> torch.Tensor:
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(value: torch.Tensor) -> torch.Tensor:
    return torch.stack([value, value + 1], -1)[..., 0]


def expanded(value: torch.Tensor) -> torch.Tensor:
    return value[:1].expand(value.shape)


def negated(value: torch.Tensor) -> torch.Tensor:
    """A tensor whose values in memory have the opposite sign."""
    return torch._neg_view(-value)


def _each(argument, way):
    if isinstance(argument, torch.Tensor):
        return way(argument) if argument.dim() else argument
    if isinstance(argument, Running):
        # These are written to, so they must not overlap in memory or be lazily negated.
        way = sliced if way in (expanded, negated) else way
        return argument._replace(mean=way(argument.mean), variance=way(argument.variance))
    return tuple(_each(each, way) for each in argument) if type(argument) is tuple else argument


def errors(calls: dict[str, tuple], *backends: ModuleType) -> dict[str, float]:
    """Compare the results of two backends, and what they write to their arguments."""
    found = {}
    for case, (name, *arguments) in calls.items():
        results = []
        for module in backends:
            given = copy.deepcopy(arguments)
            result = getattr(module, name)(*given)
            result = result if isinstance(result, tuple) else (result,)
            moved = [value for each in given if isinstance(each, Running) for value in each[:2]]
            results.append([*result, *moved])
        found[case] = max(map(distance, *results))
    return found


def spread(calls: dict[str, tuple], *backends: ModuleType) -> dict[str, float]:
    """Compare the results of two backends where those of the second are finite."""
    found = {}
    for case, (name, *arguments) in calls.items():
        ours, expected = (getattr(b, name)(*copy.deepcopy(arguments)) for b in backends)
        if not isinstance(ours, tuple):
            ours, expected = (ours,), (expected,)
        assert any(each.isfinite().any() for each in expected)
        pairs = [(r[e.isfinite()], e[e.isfinite()]) for r, e in zip(ours, expected, strict=True)]
        found[case] = max(distance(*pair) for pair in pairs if pair[0].numel())
    return found
