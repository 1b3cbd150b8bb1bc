"""The Triton kernels under Triton's interpreter, which needs no GPU, against the reference."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.ops.activations import Activation
from composer_attn.ops.excitations import neighbours, one_layer, two_layers
from composer_attn.ops.norm_kinds import settings
from composer_attn.ops.region_layers import layers_of
from tests.commands import ROOT
from tests.ops.activated_regions import FOREIGN
from tests.ops.calls import calls_between, calls_of_activations, calls_of_passes
from tests.ops.regions import ATTENTIONS

triton = pytest.importorskip("triton")


def test_the_interpreted_kernels_agree_with_the_reference():
    # The interpreter is chosen when triton is imported.
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.interpreted"], capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    errors = found["errors"]
    assert len(errors) > 300
    assert {name: error for name, (error, allowed) in errors.items() if not error <= allowed} == {}
    assert found["launches"] == {
        **{name: [4, 3] if name == "eca" else [5, 5] for name in ATTENTIONS},
        **{f"silu, {name}": LAUNCHES.get(name, [6, 5]) for name in (*FOREIGN, *ATTENTIONS)},
        "identity, norm": [3, 3],
        "identity, norm_attention": [5, 5],
    }


# Of a norm, SiLU and an attention, where those are not six and five.
LAUNCHES = {"eca": [5, 3], "neighbours": [5, 3], "one": [5, 4]}
_TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", int: "i32"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_call_of_a_kernel_compiles_for_a_gpu_and_keeps_to_its_registers(
    dtype, tmp_path, monkeypatch
):
    from composer_attn.ops.backends import triton_kernels

    calls = [
        *calls_of_passes((2, 64, 8, 8), dtype, False, "cpu").values(),
        *calls_of_passes((2, 64, 8, 8), dtype, True, "cpu").values(),
        *calls_of_passes((1, 6, 1, 1), dtype, False, "cpu").values(),
        # Sums over many positions, and in many programs.
        *calls_of_passes((1, 64, 32, 32), dtype, True, "cpu").values(),
        *calls_of_passes((2048, 64, 2, 2), dtype, True, "cpu").values(),
        *calls_between(16, 64, torch.float32, "cpu").values(),
        *calls_between(1, 6, torch.float32, "cpu").values(),
    ]
    built = compiled(triton_kernels, calls, tmp_path, monkeypatch)
    assert {name for name, *_ in built} == {
        *("_moments", "_affine", "_gradient_sums", "_input_gradient"),
        *("_normalization", "_normalization_gradient", "_convolve", "_kernel_gradient"),
    }
    assert stacks(built, tmp_path) == {}


# Of every kind: with and without exponentials, two of them, and the error function.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "names"),
    [(torch.float32, ("mish", "gelu")), (torch.bfloat16, ("silu", "hardswish"))],
)
def test_every_call_of_an_activation_does_likewise(dtype, names, tmp_path, monkeypatch):
    from composer_attn.ops.backends import activated_triton_kernels

    calls = [
        *calls_of_activations((2, 64, 8, 8), dtype, False, "cpu", names).values(),
        *calls_of_activations((2, 64, 8, 8), dtype, True, "cpu", names).values(),
        # Sums over many positions, and in many programs.
        *calls_of_activations((1, 64, 32, 32), dtype, True, "cpu", names[:1]).values(),
        *calls_of_activations((2048, 64, 2, 2), dtype, True, "cpu", names[:1]).values(),
    ]
    built = compiled(activated_triton_kernels, calls, tmp_path, monkeypatch)
    assert {name for name, *_ in built} == {
        *("_activated_means", "_activate", "_activated_sums", "_activated_gradient")
    }
    assert stacks(built, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_launch_of_a_site_does_likewise(dtype, tmp_path, monkeypatch):
    wide = max(dtype, torch.float32, key=lambda each: each.itemsize)
    calls = [
        ("run_all", dtype, shape, attention, gate, end)
        for shape, attention in (
            ((16, 64, 8, 8), SqueezeExcitation(64, 16, bias=True, dtype=wide)),
            ((3, 70, 3, 3), SqueezeExcitation(70, 5, dtype=wide)),
            ((16, 256, 4, 4), SqueezeExcitation(256, 128, dtype=wide)),
            ((16, 64, 8, 8), EfficientChannelAttention(64, 3, dtype=wide)),
            ((70, 70, 3, 3), EfficientChannelAttention(70, 9, dtype=wide)),
        )
        for gate, end in enumerate([(True, True), (True, False), (False, False), (False, True)])
    ]
    built = compiled(sites, calls, tmp_path, monkeypatch)
    assert {name for name, *_ in built} == {
        *("_moments", "_affine", "_gradient_sums", "_input_gradient"),
        *("_normalization", "_normalization_gradient", "_convolve"),
        *("_layer", "_layer_gradients"),
    }
    assert stacks(built, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "activation"),
    [(torch.float32, "silu"), (torch.float64, "relu"), (torch.bfloat16, "gelu")],
)
def test_every_launch_of_a_region_does_likewise(dtype, activation, tmp_path, monkeypatch):
    wide = max(dtype, torch.float32, key=lambda each: each.itemsize)
    attentions = [
        None,
        two_layers(nn.Conv2d(64, 6, 1), nn.Conv2d(6, 64, 1), activation, "hard_sigmoid"),
        two_layers(nn.Conv2d(64, 70, 1), nn.Conv2d(70, 64, 1), activation),
        one_layer(nn.Conv2d(64, 64, 1)),
        neighbours(64, nn.Conv1d(1, 1, 3, padding=1, bias=False)),
    ]
    calls = [
        ("run_all", dtype, wide, (16, 64, 8, 8), attention, Activation(name))
        for attention in attentions
        for name in (activation, "identity")
    ]
    built = compiled(regions, calls, tmp_path, monkeypatch)
    assert {name for name, *_ in built} == {
        *("_moments", "_normalization", "_affine", "_gradient_sums", "_input_gradient"),
        *("_activated_means", "_activate", "_activated_sums", "_activated_gradient"),
        *("_normalized_means", "_norm_gradient", "_convolve"),
        *("_layer", "_layer_gradients"),
    }
    assert stacks(built, tmp_path) == {}


class regions:  # noqa: N801  # in place of a module
    """Runs all launches of a norm, an activation and an attention, forward and backward."""

    @staticmethod
    def run_all(dtype, wide, shape, attention, activation):
        from composer_attn.ops.backends import triton_region

        x = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
        norm = nn.BatchNorm2d(shape[1]).to(wide)
        numbers = triton_region.normalize(x, *settings(norm, x.shape))
        statistics, line, layers = numbers.statistics, numbers.line, None
        if attention is None:
            triton_region.write_sum(x, numbers, x, True)
            triton_region.sum_gradient(x, x, x, statistics, norm.weight, False, numbers.sizes, True)
        parameters, attended = (), None
        if attention is not None:
            parameters = tuple(
                p if p is None else p.detach().to(wide) for p in attention.parameters
            )
            layers = layers_of(attention.excitation, parameters, shape[1], line)
            given = (norm.bias, False, activation, layers, parameters)
            attended = triton_region.attend(x, numbers, *given)
        triton_region.write(x, numbers, attended, x, activation)
        triton_region.gradient(
            *(x, x, None, statistics, line, attended, norm.weight, False, activation, layers),
            *(parameters, numbers.sizes, True),
        )


class sites:  # noqa: N801  # in place of a module
    """Runs all launches of a site, forward and backward."""

    @staticmethod
    def run_all(dtype, shape, attention, gate, end):
        from composer_attn.ops.backends import triton_site

        joined, relu = end
        x = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
        norm = nn.BatchNorm2d(shape[1]).to(next(attention.parameters()).dtype)
        is_kernel = isinstance(attention, EfficientChannelAttention)
        _, parameters = attention.logits_by_hand()
        layers = triton_site.prepare_layers(is_kernel, gate, parameters)
        site, work = triton_site.excite(x, True, layers)
        of_norm, weight, bias = settings(norm, x.shape)
        given = (weight, bias, of_norm.eps, of_norm.running)
        prepared = triton_site.prepare_norm(work, *given)
        triton_site.normalize(site, work, prepared, of_norm.running.number)
        y = triton_site.write(site, work, x, x if joined else None, relu)
        y = y if joined and relu else None
        triton_site.gradient(site, work, x, x, y, relu, False, weight, parameters, True)


def compiled(module, calls, folder, monkeypatch) -> dict[tuple, object]:
    """Compile the kernels of some calls, instead of running them, by name and source."""
    # Triton brings its compiler along, which needs no GPU: for one with compute capability 9.0.
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    built = {}

    def build(kernel, *arguments, grid, warmup, num_warps=4, **constants):
        source = specialized(kernel, arguments, constants)
        key = (kernel.__name__, source.hash())
        if key not in built:
            built[key] = triton.compile(source, target, {"num_warps": num_warps})

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    monkeypatch.setattr(triton.JITFunction, "run", build)
    for name, *arguments in calls:
        getattr(module, name)(*arguments)
    return built


def stacks(built, folder) -> dict[tuple, int]:
    """List the kernels whose threads run out of registers, and keep values on their stack."""
    return {key: used for key, each in built.items() if (used := stack_of(each, folder))}


def specialized(kernel, arguments, constants):
    """Describe a call as Triton does: a number 1 is a constant, multiples of 16 are known."""
    names = [*kernel.arg_names[: len(arguments)], *constants]
    assert names == kernel.arg_names
    types, known = ["constexpr"] * len(names), {}
    constants = {(names.index(name),): value for name, value in constants.items()}
    for i, each in enumerate(arguments):
        number, free = isinstance(each, int), not kernel.params[i].do_not_specialize
        if number and free and each == 1:
            constants[i,] = 1
            continue
        types[i] = _TYPES[getattr(each, "dtype", int)]
        if free and (not number or each % 16 == 0):
            known[i,] = [["tt.divisibility", 16]]
    types = dict(zip(names, types, strict=True))
    return triton.compiler.ASTSource(kernel, types, constants, known)


def stack_of(built, folder) -> int:
    """Read from a compiled kernel how many bytes of stack a thread uses."""
    (folder / "kernel.cubin").write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.run(
        [tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    return int(re.search(r"STACK:(\d+)", listing)[1])
