"""Which passes run, and what happens if a backend cannot."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from composer_attn import apply_eca, fuse_attention
from composer_attn.errors import BackendWarning
from composer_attn.ops import BACKENDS, check_backend
from composer_attn.ops.backends import cpp, table, triton_kernels
from composer_attn.ops.backends import reference as passes
from tests.commands import ROOT


@pytest.mark.parametrize("name", BACKENDS)
def test_the_names_are_valid(name):
    assert check_backend(name) == name


def test_a_cpu_gets_the_passes_in_cpp_and_what_they_do_not_take_the_reference():
    x = torch.ones(2, 3, 4, 4)
    assert table.find_passes("auto", x) is cpp
    assert table.find_passes("auto", x.bfloat16()) is cpp
    assert table.find_passes("auto", x.half()) is passes
    assert table.find_passes("reference", x) is passes


def test_triton_without_cuda_falls_back_with_one_warning():
    if torch.cuda.is_available():
        pytest.skip("CUDA is available")
    table._ready.cache_clear()
    x = torch.ones(2, 3, 4, 4)
    with pytest.warns(BackendWarning, match="triton backend is not available here") as caught:
        assert [table.find_passes("triton", x) for _ in range(3)] == [passes] * 3
    assert len([w for w in caught if w.category is BackendWarning]) == 1


def test_the_same_library_is_found_again_and_a_new_compiler_flag_builds_another(tmp_path):
    from composer_attn.ops.backends import cpp_build

    source = tmp_path / "half.cpp"
    source.write_text('extern "C" int half(int x) { return x / 2; }')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPOSER_ATTN_CACHE", str(tmp_path / "cache"))
        assert cpp_build.build(source).half(8) == 4
        assert cpp_build.build(source).half(8) == 4
        assert len(list((tmp_path / "cache").iterdir())) == 1
        source.write_text('extern "C" int half(int x) { return x / 2 + 1; }')
        assert cpp_build.build(source).half(8) == 5
        source.write_text("no C++")
        with pytest.raises(OSError, match="failed: "):
            cpp_build.build(source)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.fixture
def built(monkeypatch):
    """List the backends that are built, here for the first time in their process."""
    found = []
    for name, module in (("cpp", cpp), ("triton", triton_kernels)):
        monkeypatch.setattr(module, "load", lambda name=name: found.append(name))
    table._ready.cache_clear()
    yield found
    table._ready.cache_clear()


@pytest.mark.parametrize(
    ("name", "device", "builds"),
    [
        ("auto", "cpu", ["cpp"]),
        ("auto", "cuda", ["triton"]),
        ("auto", "meta", []),
        ("cpp", "cpu", ["cpp"]),
        ("cpp", "cuda", []),  # which takes the reference there
        ("triton", "cpu", []),
        ("reference", "cpu", []),
        ("inductor", "cpu", []),
    ],
)
def test_a_backend_is_built_beforehand_for_the_device_it_runs_on(built, name, device, builds):
    table.prepare(name, [torch.device(device)] * 2)
    assert built == builds
    table.prepare(name, [torch.device(device)])
    assert built == builds


def test_what_is_built_beforehand_is_what_the_first_pass_finds(built):
    table.prepare("auto", [torch.device("cpu")])
    assert table.find_passes("auto", torch.ones(2, 3, 4, 4)) is cpp
    assert built == ["cpp"]


@pytest.mark.parametrize(("gpu", "builds"), [(False, ["cpp"]), (True, [])])
def test_fusing_builds_for_the_device_of_the_network(built, gpu, builds, monkeypatch):
    """A network on the CPU of a machine with a GPU is on its way there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    apply_eca(model, min_channels=8)
    fuse_attention(model)
    assert built == builds
    fuse_attention(model, backend="cpp")
    assert built == ["cpp"]


RUN = """
import warnings, torch
from torch import nn
from composer_attn.attention import SqueezeExcitation
from composer_attn.ops import attend_then_normalize
warnings.simplefilter("always")
attention, norm = SqueezeExcitation(8, 4), nn.BatchNorm2d(8)
with warnings.catch_warnings(record=True) as caught:
    for _ in range(3):
        x = torch.randn(2, 8, 6, 6, requires_grad=True)
        attend_then_normalize(x, attention, norm, "{backend}").square().mean().backward()
own = [str(w.message) for w in caught if w.category.__name__ == "BackendWarning"]
print(len(own), norm.num_batches_tracked.item(), own[0] if own else "")
"""


def run_with(tmp_path, backend: str, **variables: str) -> str:
    """Train three steps in a fresh interpreter, with nothing compiled yet."""
    fresh = {"COMPOSER_ATTN_CACHE": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(backend=backend)], capture_output=True, text=True,
        env=os.environ | fresh | variables, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["auto", pytest.param("inductor", marks=pytest.mark.slow)])
def test_without_a_compiler_training_continues_with_one_warning(tmp_path, backend):
    assert run_with(tmp_path, backend, CXX="/nowhere/c++").startswith("1 3 ")


def test_a_compiler_that_fails_leaves_training_alone(tmp_path):
    assert "/false failed" in run_with(tmp_path, "auto", CXX="false")


def test_a_folder_that_cannot_be_written_leaves_training_alone(tmp_path):
    (tmp_path / "file").touch()
    assert run_with(tmp_path, "auto", COMPOSER_ATTN_CACHE=str(tmp_path / "file")).startswith("1 3 ")


@pytest.mark.slow
def test_with_a_compiler_there_is_no_warning(tmp_path):
    assert run_with(tmp_path, "auto").strip() == "0 3"
    assert len(list(tmp_path.glob("passes-*.so"))) == 1
