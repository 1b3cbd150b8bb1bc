#!/usr/bin/env python3
"""Build the package, check its contents, and use it outside the repository.

    .ci/check_wheel.py                # with the environment in .venv
    .ci/check_wheel.py /path/to/venv  # with another one that has the extra "dev"

Torch and its dependencies are linked into the new environments rather than installed again.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ALONE = """
import pathlib, torch, torch.export
from torch import nn
import composer_attn
from composer_attn import apply_eca, apply_squeeze_excite, fuse_attention

assert "site-packages" in composer_attn.__file__, composer_attn.__file__
model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 64, 3))
print(apply_squeeze_excite(model), apply_eca(model, min_channels=64), sep="\\n")
print(fuse_attention(model, backend="cpp"))  # built from the sources in the wheel
x = torch.randn(2, 3, 8, 8)
expected = model.eval()(x)
torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
"""


# Prints the entries in site-packages of some distributions and all of their dependencies.
NEEDED = """
import importlib.metadata, re, sys
waiting, found = sys.argv[1:], {}
while waiting:
    name = re.sub("[-_.]+", "-", waiting.pop()).lower()
    if name in found:
        continue
    try:
        found[name] = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # for another platform
        continue
    lines = found[name].requires or []
    waiting += [re.match(r"[\\w.-]+", line)[0] for line in lines if "extra ==" not in line]
tops = {each.locate_file(file.parts[0]) for each in found.values() for file in each.files}
print(*sorted(str(top) for top in tops if ".." not in str(top)), sep="\\n")
"""


def say(*command: str, cwd: Path, status: int = 0) -> str:
    """Run a command and return its output; exit with that output if the exit code differs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = "1"
    together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=cwd, env=environment, **together)
    if done.returncode != status:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\nended with {done.returncode}, not {status}")
    return done.stdout


def tracked(*paths: str) -> set[str]:
    """List the tracked files, or those in some folders."""
    return set(say("git", "ls-files", *paths, cwd=ROOT).splitlines())


def check_wheel(wheel: Path) -> None:
    """Compare the files in a wheel with the expected ones."""
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    expected = tracked("composer_attn") | {"composer_attn/recipes/digits_plain.yaml"}
    names = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    expected |= {f"{info}/{name}" for name in names}
    if found != expected:
        sys.exit(f"missing: {sorted(expected - found)}\nsuperfluous: {sorted(found - expected)}")
    needed = (".cpp", ".h", ".css", ".j2", ".json", ".yaml", "py.typed")
    for ending in needed:
        if not any(name.endswith(ending) for name in found):
            sys.exit(f"no {ending} in {wheel.name}")
    print(f"{wheel.name}: {len(found)} files, as they should be")


def check_sdist(sdist: Path) -> None:
    """Compare the files in a source distribution with the tracked ones."""
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    hidden = {name for name in tracked() if name.startswith(".") and name != ".gitignore"}
    expected = (tracked() - hidden) | {"PKG-INFO"}
    if found != expected:
        sys.exit(f"missing: {sorted(expected - found)}\nsuperfluous: {sorted(found - expected)}")
    print(f"{sdist.name}: {len(found)} files, as they should be")


def linked(python: Path, distributions: list[str]) -> list[Path]:
    """List the entries in site-packages of distributions and all of their dependencies."""
    return [Path(line) for line in say(str(python), "-c", NEEDED, *distributions, cwd=ROOT).split()]


def site_packages(venv: Path) -> Path:
    """Return the site-packages folder of an environment."""
    return next((venv / "lib").glob("python3.*/site-packages"))


def environment(source: Path, folder: Path, wheel: Path, everything: bool) -> Path:
    """Create an environment with the wheel and either torch alone or everything else."""
    python = source / "bin" / "python"
    say(str(python), "-m", "venv", str(folder), cwd=ROOT)
    own = site_packages(folder)
    if everything:  # after its own packages, and without editable installations
        (own / "everything.pth").write_text(f"{site_packages(source)}\n")
    else:
        for path in linked(python, ["torch", "wrapt"]):
            if not (own / path.name).exists():
                (own / path.name).symlink_to(path)
    pip = str(folder / "bin" / "pip")
    extra = "[demo]" if everything else ""
    before = say(pip, "list", "--format=freeze", cwd=ROOT)
    command = [pip, "install", "--no-index", "--ignore-installed", "--no-deps", str(wheel)]
    say(*command, cwd=ROOT)
    # The wheel's requirements are met, and nothing was changed.
    say(pip, "install", "--no-index", f"composer-attn{extra}", cwd=ROOT)
    after = say(pip, "list", "--format=freeze", cwd=ROOT)
    changed = set(before.split()) ^ set(after.split())
    if any(not line.startswith("composer") for line in changed):
        sys.exit(f"installing the wheel changed {sorted(changed)}")
    return folder / "bin"


def main() -> None:
    """Build and check."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv").absolute()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["COMPOSER_ATTN_CACHE"] = str(folder / "cache")  # rebuild the C++
        python = str(source / "bin" / "python")
        say(python, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT), cwd=ROOT)
        (wheel,), (sdist,) = ((folder / "dist").glob(e) for e in ("*.whl", "*.tar.gz"))
        print(say(python, "-m", "twine", "check", "--strict", str(wheel), str(sdist), cwd=ROOT))
        check_wheel(wheel)
        check_sdist(sdist)

        empty = folder / "empty"
        empty.mkdir()
        alone = environment(source, folder / "alone", wheel, everything=False)
        print(say(str(alone / "python"), "-c", ALONE, cwd=empty))
        refused = say(str(alone / "composer-attn"), "study", cwd=empty, status=2)
        if not re.fullmatch(r"composer-attn: .* pip install 'composer-attn\[runs\]'\n", refused):
            sys.exit(f"with torch alone, composer-attn printed\n{refused}")
        print(refused)

        full = environment(source, folder / "full", wheel, everything=True)
        command = str(full / "composer-attn")
        print(say(command, "--version", cwd=empty))
        say(command, "study", "max_duration=1ep", "--variants", "plain,eca", cwd=empty)
        report = empty / "runs" / "digits_study" / "report.html"
        if not report.is_file():
            sys.exit("composer-attn study wrote no report")
        print(f"composer-attn study wrote a report of {report.stat().st_size} bytes")


if __name__ == "__main__":
    main()
