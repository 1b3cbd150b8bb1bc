"""The built library: damaged ones are built again, and the compiler is any command."""

import subprocess
import sys
from pathlib import Path

import pytest

from composer_attn.ops.backends import cpp_build

SOURCE = 'extern "C" int half(int x) { return x / 2; }'

DAMAGE = {
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 64,
    "half": lambda content: content[: len(content) // 2],
    "all but a page": lambda content: content[:-4096],
    "zeros inside": lambda content: content[:4096] + bytes(8192) + content[4096 + 8192 :],
    "zeros": lambda content: bytes(len(content)),
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
}

# By its file: a process of its own, which a damaged library may end, then starts without torch.
RUN = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("cpp_build", {cpp_build.__file__!r})
cpp_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpp_build)
print(cpp_build.build(Path(sys.argv[1])).half(8))
"""


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COMPOSER_ATTN_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "cpp" / "half.cpp"
    source.parent.mkdir()
    source.write_text(SOURCE)
    return source


def run(source: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_library_is_built_again(source, damage, tmp_path):
    cpp_build.build(source)
    (library,) = (tmp_path / "cache").iterdir()
    whole = library.read_bytes()
    library.unlink()  # this process has it mapped
    library.write_bytes(damage(whole))
    for _ in range(2):
        done = run(source)
        assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
    (again,) = (tmp_path / "cache").iterdir()
    assert len(again.read_bytes()) == len(whole)


def test_a_whole_library_is_found_again_and_not_written_again(source, tmp_path):
    cpp_build.build(source)
    (library,) = (tmp_path / "cache").iterdir()
    before = library.stat().st_mtime_ns, library.stat().st_ino
    assert run(source).stdout == "4\n"
    assert (library.stat().st_mtime_ns, library.stat().st_ino) == before


def test_a_folder_in_the_place_of_the_library_is_passed_over(source, tmp_path):
    cpp_build.build(source)
    (library,) = (tmp_path / "cache").iterdir()
    library.unlink()
    taken = library.with_name(f"{library.stem.rpartition('-')[0]}-0.so")
    taken.mkdir()
    assert run(source).stdout == "4\n"


@pytest.mark.parametrize("flags", ["", " -DTWICE=1"])
def test_a_compiler_behind_a_wrapper_is_called_through_it(source, flags, tmp_path, monkeypatch):
    """As in CXX="ccache g++"."""
    wrapper = tmp_path / "cc ache"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setenv("CXX", f"'{wrapper}' g++{flags}")
    assert cpp_build.build(source).half(8) == 4
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith(f"g++{flags} -std=c++17 ")


def test_another_command_builds_another_library(source, tmp_path, monkeypatch):
    for command in ("g++", "g++ -DTWICE=1", "  g++  "):
        monkeypatch.setenv("CXX", command)
        cpp_build.build(source)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("nowhere-ccache g++", r"no C\+\+ compiler found \(looked for nowhere-ccache\)"),
        ("'g++", 'CXX="\'g\\+\\+" is not a command'),
        ("env false", "/env false failed: "),
    ],
)
def test_a_command_that_does_not_compile_is_named(source, command, says, monkeypatch):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(OSError, match=says):
        cpp_build.build(source)
