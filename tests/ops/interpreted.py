"""Compares the Triton kernels with the reference, and prints the errors as JSON."""

import itertools
import json

import torch

from composer_attn.attention import EfficientChannelAttention
from composer_attn.ops import attend
from composer_attn.ops.backends import activated_reference as activated
from composer_attn.ops.backends import activated_triton_kernels, triton_kernels
from composer_attn.ops.backends import reference as passes
from composer_attn.ops.backends.launch import Call
from composer_attn.ops.recompute import recipe_of
from tests.attention.attentions import GATES
from tests.ops import activated_regions
from tests.ops.activated_regions import FOREIGN
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
from tests.ops.regions import ATTENTIONS, build, differences, distance, draw, from_copies

# On a GPU, also sums over many positions and over many programs.
LARGE = [(2, 70, 33, 33), (700, 200, 3, 3)]
KINDS = (*FOREIGN, *ATTENTIONS)
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


class Launches:
    """Counts the launches of whole sites, of the forward and of the backward."""

    def __init__(self):
        self.run, self.seen = Call.__call__, 0

    def __enter__(self) -> "Launches":
        def counted(*given):
            self.seen += 1
            return self.run(*given)

        Call.__call__ = counted
        return self

    def __exit__(self, *error) -> None:
        Call.__call__ = self.run

    def of_step(self, site, shape) -> list[int]:
        """Return the launches of a step."""
        x, self.seen = torch.randn(shape, dtype=torch.float64, requires_grad=True), 0
        y = site.joint(x, None, "triton")
        before, self.seen = self.seen, 0
        y.sum().backward()
        return [before, self.seen]


def launches() -> dict[str, list[int]]:
    """Return the launches of a site, forward and backward, by attention; of both orders."""
    shape, found = SHAPES[0], {}
    with Launches() as counter:
        for name in ATTENTIONS:
            found[name] = counter.of_step(build(shape, name, relu=True), shape)
        for name in KINDS:
            site = activated_regions.build(shape, "silu", attention=name)
            found[f"silu, {name}"] = counter.of_step(site, shape)
        for parts in ("norm", "norm_attention"):
            site = activated_regions.build(shape, "identity", parts=parts)
            found[f"identity, {parts}"] = counter.of_step(site, shape)
    return found


def kernels() -> dict[str, tuple[float, float]]:
    """Return the largest difference of sites, by size of the kernel along the channels.

    Of more samples and channels than a program handles, and of fewer channels than the kernel.
    """
    found = {}
    for size, (samples, channels) in itertools.product((1, 5, 21), ((20, 47), (2, 3))):
        shape = (samples, channels, 2, 1)
        site, region = build(shape, "eca"), activated_regions.build(shape, "silu", attention="eca")
        for each in (site, region):
            each.attention = EfficientChannelAttention(channels, size, dtype=torch.float64)
            torch.nn.init.normal_(next(each.attention.parameters()))
        errors_of = differences(site, shape, "triton")
        of_region = activated_regions.differences(region, shape, "triton")
        largest = max(*errors_of.values(), *of_region.values())
        found[f"kernel of {size} on {samples}x{channels}"] = (largest, 1e-12)
    return found


def sites() -> dict[str, tuple[float, float]]:
    """Return the largest difference of whole sites from the modules, and the tolerance."""
    found = kernels()
    ends = [{}, {"relu": True}, {"shortcut": True, "relu": True}]
    for i, (name, training) in enumerate(itertools.product(ATTENTIONS, (True, False))):
        for shape in (SHAPES[0], (5, 37, 3, 2)):
            case = build(shape, name, training=training, gate=GATES[i % 4], **ends[i % 3])
            errors_of = differences(case, shape, "triton", last=training, steps=2)
            found[f"{name} {training} {shape}"] = (max(errors_of.values()), 1e-12)
    for i, (name, training) in enumerate(itertools.product(KINDS, (True, False))):
        for activation in ("silu", "identity", "elu"):
            site = activated_regions.build(SHAPES[0], activation, attention=name, training=training)
            errors_of = activated_regions.differences(site, SHAPES[0], "triton", i % 2 == 0)
            found[f"{activation} {name} {training}"] = (max(errors_of.values()), 1e-12)
    for name in ATTENTIONS:
        case, x = build(SHAPES[0], name, relu=True), draw(SHAPES[0]).requires_grad_()
        of_region = activated_regions.build(SHAPES[0], "silu", attention=name)
        outputs = {
            "norm": case.joint(x, None, "triton"),
            "alone": attend(x, case.attention, "triton"),
            "activation": of_region.joint(x, None, "triton"),
        }
        for end, y in outputs.items():
            again = recipe_of(y)()
            found[f"{name} {end} recomputed"] = (0.0 if torch.equal(again, y) else 1.0, 0.0)
        parameters, dy = [x, *case.attention.parameters()], torch.randn_like(x)
        right = torch.autograd.grad(case.attention(x), parameters, dy)
        alone = torch.autograd.grad(outputs["alone"], parameters, dy)
        found[f"{name} alone"] = (max(map(distance, alone, right)), 1e-12)
    for parts, activation in (("norm", "relu"), ("norm", "identity"), ("norm_attention", "relu")):
        for shortcut in (True, False):
            site = activated_regions.build(
                SHAPES[0], activation, parts=parts, shortcut=shortcut and activation != "silu"
            )
            errors_of = activated_regions.differences(site, SHAPES[0], "triton", True)
            found[f"{parts} {activation} {shortcut}"] = (max(errors_of.values()), 1e-12)
    for name in KINDS:
        found[f"autocast, {name}"] = (in_autocast(name), 0.0)
    others = {
        "site": build(SHAPES[0], relu=True),
        "region": activated_regions.build(SHAPES[0]),
        "sum": activated_regions.build(SHAPES[0], "relu", parts="norm", shortcut=True),
        "negative": build(SHAPES[0], "se_bias"),
    }
    for parameter in others["negative"].parameters():
        parameter.data = torch._neg_view(parameter.data)
    for name, each in others.items():
        found[f"copies, {name}"] = (from_copies(each, "triton"), 1e-12)
    return found


def in_autocast(attention: str) -> float:
    """Return the largest change of gradients if autocast is enabled in backward."""
    site = activated_regions.build(SHAPES[0], attention=attention, dtype=torch.float32)
    x, dy = draw(SHAPES[0], torch.float32), draw(SHAPES[0], torch.float32)
    y, wanted = site.joint(x, None, "triton"), site.parameters()
    right = torch.autograd.grad(y, wanted, dy, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        return max(map(distance, torch.autograd.grad(y, wanted, dy), right))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills memory that nothing is written to with NaN
    found = table("cpu")
    shape = SHAPES[0]
    whole = differences(build(shape, relu=True, shortcut=True), shape, "triton", last=True)
    found |= sites() | {"whole": (max(whole.values()), 1e-12)}
    print(json.dumps({"errors": found, "launches": launches()}))
