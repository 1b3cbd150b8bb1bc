"""What of Composer's the package leans on beyond its reference: in our docs, and still there.

An override of a private method that Composer no longer calls would be silent: each is watched.
"""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import checkpoint

import composer_attn
from composer_attn.runs.training.checkpoint_saver import SafeCheckpointSaver
from tests.commands import ROOT

PACKAGE = Path(composer_attn.__file__).parent

# What calls the method that we override.
CALLERS = ("batch_checkpoint", "epoch_checkpoint", "iteration_checkpoint")
# Attributes of the saver that our override sets, or reads.
OF_SAVERS = {
    "all_saved_checkpoints_to_timestamp",
    "filename",
    "folder",
    "last_checkpoint_batch",
    "num_checkpoints_to_keep",
    "overwrite",
    "remote_file_name",
    "saved_checkpoints",
}
# Public by their names, and not in Composer's API reference.
OF_MODULES = {
    "composer.algorithms.warnings.NoEffectWarning",
    "composer.algorithms.warnings.NotIntendedUseWarning",
    "composer.utils.checkpoint.save_checkpoint",
    "composer.utils.compression.is_compressed_pt",
    "composer.utils.file_helpers.format_name_with_dist",
    "composer.utils.parallelism.FSDP2Config",
    "composer.utils.parallelism.ParallelismConfig",
}
# tests/runs/test_guard.py sees that the variable is obeyed, tests/fusion/test_other_norms.py that
# ghost batch norm is found.
OTHERS = {"CheckpointSaver", "CheckpointSaver._save_checkpoint", "CHECKPOINT_VALIDATION_FUNCTION",
          "_GhostBatchNorm"}  # fmt: skip


def calls(function) -> set[str]:
    """Return the names of the attributes of ``self`` that a function calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call))
    return {ast.unparse(name) for name in found}


def imported() -> set[str]:
    """Name what the package imports from modules of Composer's below the documented packages."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("composer."):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {n for n in names if len(n.split(".")) > 3 or "._" in n}
    return found


@pytest.mark.parametrize("caller", CALLERS)
def test_composer_saves_by_the_method_that_is_overridden(caller):
    assert "self._save_checkpoint" in calls(getattr(CheckpointSaver, caller))


def test_the_override_takes_what_composer_gives():
    ours, theirs = (
        list(inspect.signature(cls._save_checkpoint).parameters)
        for cls in (SafeCheckpointSaver, CheckpointSaver)
    )
    assert ours == theirs == ["self", "state", "logger"]


def test_nothing_else_of_the_saver_is_private_and_overridden():
    private = {name for name in vars(SafeCheckpointSaver) if re.match(r"_(?!_|abc_)", name)}
    assert private & set(dir(CheckpointSaver)) == {"_save_checkpoint"}


def test_savers_have_what_the_override_uses(tmp_path):
    saver = CheckpointSaver(str(tmp_path))
    assert {name for name in OF_SAVERS if hasattr(saver, name)} == OF_SAVERS
    tree = ast.parse(inspect.getsource(SafeCheckpointSaver))
    used = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"
    }
    assert used & set(vars(saver)) == OF_SAVERS


def test_a_file_is_written_under_the_very_name_that_is_given():
    assert list(inspect.signature(checkpoint.save_checkpoint).parameters)[:2] == [
        "state",
        "filename",
    ]
    assert isinstance(State.fsdp_sharded_state_dict_enabled, property)  # which would make folders


@pytest.mark.parametrize("name", sorted(OF_MODULES))
def test_composer_has_each(name):
    parent, _, own = name.rpartition(".")
    assert hasattr(importlib.import_module(parent), own)


def test_the_list_is_complete_and_holds_nothing_else():
    assert imported() | {"composer.utils.checkpoint.save_checkpoint"} == OF_MODULES


def test_the_docs_list_them_all():
    text = (ROOT / "docs" / "versions.md").read_text()
    table = text.partition("## Names of Composer")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))
    assert listed == OF_MODULES | OTHERS
