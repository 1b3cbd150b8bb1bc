"""The structure of the package: imports only go down, files stay small, importing is cheap."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import composer_attn

ROOT = Path(composer_attn.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# From below: each part imports those before its line, and itself.
LAYERS = [
    ["errors"],
    ["checks", "extras"],
    ["ops"],
    ["attention"],
    ["surgery"],
    ["costs", "fusion"],
    ["folding"],
    ["functional"],
    ["algorithms", "callbacks", "heatmaps"],
    ["runs.config"],
    ["runs.data", "runs.models"],
    ["runs.tasks"],
    ["runs.components"],
    ["runs.training", "runs.planning"],
    ["runs.inference"],
    ["runs.heatmaps"],
    ["runs.report"],
    ["runs.benchmark", "runs.study"],
    ["runs.scaling"],
    ["runs"],
    ["cli"],
    ["__main__", "__init__"],
]
FLOORS = {part: floor for floor, parts in enumerate(LAYERS) for part in parts}
COMPOSERS = FLOORS["algorithms"]


def part_of(module: str) -> str:
    """Name the part of the package that a module, named below it, belongs to."""
    first, *rest = module.split(".")
    within = f"{first}.{rest[0]}" if rest else first
    return within if within in FLOORS else first


def name_of(file: Path) -> str:
    """Name the module in a file, below the package."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# As others import them, and below the package.
MODULES = {
    f"composer_attn.{name_of(file)}".removesuffix(".__init__"): name_of(file) for file in FILES
}


def is_for_types(node: ast.AST) -> bool:
    """Return whether only type checkers follow a node: ``if TYPE_CHECKING: ...``."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_of(file: Path) -> set[str]:
    """List every module that a file imports, wherever in it, relative ones spelled out."""
    package = ".".join(file.relative_to(ROOT.parent).parent.parts)
    found = set()
    tree = ast.parse(file.read_text())
    unrun = {node for block in ast.walk(tree) if is_for_types(block) for node in block.body}
    for node in set(ast.walk(tree)) - unrun:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            # A module of a package, or a name in a module.
            deeper = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in deeper}
    return found


def own_imports_of(file: Path) -> set[str]:
    """List the modules of the package that a file imports, named below it."""
    # The package itself holds the version, and loads nothing before it is asked for it.
    return {MODULES[name] for name in imports_of(file) & MODULES.keys() - {"composer_attn"}}


def loaded_by(statement: str) -> set[str]:
    """List the top-level packages that a statement loads in a fresh interpreter."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return set(done.stdout.split())


def test_every_part_of_the_package_has_a_floor():
    assert {part_of(name_of(file)) for file in FILES} == set(FLOORS)
    assert len(FILES) > 20


def test_imports_go_down_only():
    upwards = {
        (name_of(file), part)
        for file in FILES
        for part in map(part_of, own_imports_of(file))
        if part != part_of(name_of(file)) and FLOORS[part] >= FLOORS[part_of(name_of(file))]
    }
    assert upwards == set()


def test_imports_go_in_no_circle():
    # A package imports its modules, so an import of a package itself depends on all of them.
    graph = {name_of(file): own_imports_of(file) for file in FILES}
    assert len(graph) > 100
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_lower_floors_need_torch_alone():
    known = {"torch", "typing_extensions", "composer_attn", *sys.stdlib_module_names}
    more = {}
    for file in (file for file in FILES if FLOORS[part_of(name_of(file))] < COMPOSERS):
        # Torch for CUDA brings Triton; the files of kernels are loaded when they first run.
        kernels = file.name.endswith("kernels.py") or file.name == "launch.py"
        allowed = known | ({"triton"} if kernels else set())
        more[file.name] = {name.split(".")[0] for name in imports_of(file)} - allowed
    assert len(more) > 50
    assert {name: found for name, found in more.items() if found} == {}


def test_no_two_public_classes_have_the_same_name():
    classes = Counter(
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert len(classes) > 100
    assert [name for name, count in classes.items() if count > 1] == []


def test_files_are_short():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length >= 300} == {}


@pytest.mark.parametrize("module", ["functional", "surgery", "attention", "ops"])
def test_the_lower_floors_load_neither_composer_nor_torchvision_nor_timm(module):
    loaded = loaded_by(f"import composer_attn.{module}")
    assert {"composer_attn", "torch"} <= loaded
    assert loaded.isdisjoint(
        {"composer", "torchvision", "timm", "torchmetrics", "omegaconf", "triton"}
    )


def test_importing_the_package_loads_no_torch():
    loaded = loaded_by("import composer_attn")
    assert "composer_attn" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "composer", "torchvision", "timm"})


def test_functions_by_their_public_names_do_not_load_composer():
    loaded = loaded_by("from composer_attn import apply_eca, apply_squeeze_excite, SurgeryPlan")
    assert "torch" in loaded
    assert loaded.isdisjoint({"composer", "torchvision", "timm"})


def test_every_public_name_resolves_and_is_listed_everywhere():
    assert sorted(composer_attn.__all__) == sorted(composer_attn._HOMES)
    for name in composer_attn.__all__:
        assert getattr(composer_attn, name).__module__.startswith("composer_attn.")
    assert set(composer_attn.__all__) <= set(dir(composer_attn))


def test_names_for_type_checkers_are_the_public_ones():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert {
        name: module.removeprefix("composer_attn.") for name, module in names.items()
    } == composer_attn._HOMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'composer_attn' has no attribute 'CBAM'"):
        _ = composer_attn.CBAM


def test_every_module_imports_and_its_public_names_resolve():
    names = [name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "composer_attn.")]
    missing = {}
    for name in names:
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        absent = [each for each in getattr(module, "__all__", []) if not hasattr(module, each)]
        missing |= {name: absent} if absent else {}
    assert len(names) > 100
    assert missing == {}
