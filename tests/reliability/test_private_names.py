"""Every private name of torch's that the package refers to: listed in the docs, and still there."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import composer_attn
from composer_attn.fusion import tensor_functions
from tests.commands import ROOT

PACKAGE = Path(composer_attn.__file__).parent

# Tables of every nn.Module, as attributes.
OF_MODULES = {
    "_backward_hooks",
    "_backward_pre_hooks",
    "_buffers",
    "_compiled_call_impl",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
    "_load_state_dict_pre_hooks",
    "_modules",
    "_parameters",
}
# Of every tensor.
OF_TENSORS = {"_version"}
# Of every batch norm.
OF_NORMS = {"_check_input_dim"}
# Of every convolution.
OF_CONVOLUTIONS = {"_conv_forward"}
# Of the class of an autograd function's node.
OF_NODES = {"_forward_cls"}
# Other names of torch's that are not public: what has them.
OF_TORCH = {
    "torch._C",
    "torch._C.DisableTorchFunctionSubclass",
    "torch._C._are_functorch_transforms_active",
    "torch._C._functorch",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch._C._is_tracing",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._set_grad_enabled",
    "torch.ao.quantization.fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD",
    "torch.autograd.forward_ad._current_level",
    "torch.nn.modules.batchnorm._BatchNorm",
    "torch.nn.modules.batchnorm._NormBase",
    "torch.utils._python_dispatch",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._python_dispatch._disable_current_modes",
    "torch.utils._pytree",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_map_only",
    "torch._subclasses.fake_tensor",
    "torch._subclasses.fake_tensor.FakeTensorMode",
}
# Whatever a module has by itself.
OF_ANY_MODULE = set(dir(nn.Module()))
# What torch.jit.script asks a module for.
OF_SCRIPTING = {"__prepare_scriptable__"}


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """Write an attribute out, like torch.nn.x for nn.x; empty where it starts with no module."""
    if isinstance(node, ast.Attribute):
        start = dotted(node.value, aliases)
        return f"{start}.{node.attr}" if start else ""
    return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""


def references(tree: ast.AST) -> set[str]:
    """Find the private names of torch's in a file: in imports, behind modules, and in strings."""
    found, aliases = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            aliases |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("torch.")}
            aliases |= {a.asname or a.name.split(".")[0]: (a.asname and a.name) or "torch"
                        for a in node.names if a.name.split(".")[0] == "torch"}  # fmt: skip
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("import_module('"):
            aliases[ast.unparse(node.targets[0])] = ast.literal_eval(node.value.args[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(dotted(node, aliases))
            found |= {node.attr} & OF_ANY_MODULE
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & OF_ANY_MODULE
    return {name for name in found if is_private(name)}


@pytest.fixture(scope="module")
def used():
    files = [ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]
    assert len(files) > 40
    return set().union(*map(references, files))


def test_the_list_is_complete_and_holds_nothing_else(used):
    assert used == OF_MODULES | OF_TENSORS | OF_TORCH


@pytest.mark.parametrize("name", sorted(OF_MODULES))
def test_modules_have_each(name):
    assert hasattr(nn.Module(), name)


def test_the_listed_functions_exist_except_those_of_named_tensors():
    assert {"rename_"} >= tensor_functions.GONE


@pytest.mark.parametrize("name", sorted(OF_TENSORS))
def test_tensors_have_the_attribute(name):
    assert hasattr(torch.empty(0), name)


@pytest.mark.parametrize("name", sorted(OF_NORMS))
def test_batch_norms_have_each(name):
    assert callable(getattr(nn.BatchNorm2d, name))


@pytest.mark.parametrize("name", sorted(OF_CONVOLUTIONS))
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_have_each(name, kind):
    assert callable(getattr(kind, name))


@pytest.mark.parametrize("name", sorted(OF_NODES))
def test_nodes_have_each(name):
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

    node = Same.apply(torch.ones(1, requires_grad=True)).grad_fn
    assert getattr(type(node), name) is Same


@pytest.mark.parametrize("name", sorted(OF_TORCH))
def test_torch_has_each(name):
    parent, _, own = name.rpartition(".")
    assert hasattr(importlib.import_module(parent), own)


def test_scripting_still_asks(monkeypatch):
    class Refusing(nn.Module):
        def __prepare_scriptable__(self):
            raise KeyError("asked")

    with pytest.raises(KeyError, match="asked"):
        torch.jit.script(Refusing())


def test_the_docs_list_them_all():
    text = (ROOT / "docs" / "versions.md").read_text()
    table = text.partition("## Private names of torch")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))
    modules = OF_TORCH & set(sys.modules)
    others = OF_MODULES | OF_TENSORS | OF_NORMS | OF_CONVOLUTIONS | OF_NODES | OF_SCRIPTING
    assert listed == others | (OF_TORCH - modules)


def test_the_search_finds_what_it_is_for():
    code = """
import torch
from torch import nn
from torch._C import Graph
c = import_module("torch.nn.c")
def f(module):
    torch._dynamo.reset(), c._table
    nn.modules.conv._ConvNd
    return module._forward_hooks, getattr(module, "_backward_hooks"), module._own
"""
    assert references(ast.parse(code)) == {
        "torch._C", "torch._C.Graph", "torch._dynamo", "torch._dynamo.reset",
        "torch.nn.c._table", "torch.nn.modules.conv._ConvNd", "_forward_hooks", "_backward_hooks",
    }  # fmt: skip
