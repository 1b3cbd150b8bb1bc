"""Block methods that fold norms or merge branches on modules that contain attended ones.

A network's own ``fuse()`` or ``reparameterize()`` builds new convolutions from its weights and
discards the modules that were attended.
"""

from collections.abc import Iterator
from functools import partial
from inspect import Parameter, isfunction, signature

from torch import nn

from composer_attn.attention.own_method import OwnMethod
from composer_attn.errors import ModelError, first_few
from composer_attn.surgery.attend import is_attended
from composer_attn.surgery.folding import ADVICE

# Names under which networks and packages define methods that fold norms or merge branches.
FOLDING_METHODS = (
    "fuse",
    "fuse_convs",
    "fuse_model",
    "merge_bn",
    "merge_kernel",
    "reparam",
    "reparameterize",
    "structural_reparam",
    "switch_to_deploy",
)


def refuse_folding(model: nn.Module) -> None:
    """Make the folding methods of every ancestor of an attended module raise a ModelError."""
    for module in model.modules():
        for name in _folding_methods(module):
            if _attended_below(module):
                vars(module)[name] = OwnMethod(module, partial(_fold_if_unattended, name))


def allow_folding(model: nn.Module) -> None:
    """Undo :func:`refuse_folding`."""
    for module in model.modules():
        for name in FOLDING_METHODS:
            if _is_refusal(vars(module).get(name)):
                del vars(module)[name]


def _folding_methods(module: nn.Module) -> Iterator[str]:
    """Yield the names of a module's folding methods: known names without required arguments.

    A ``fuse(a, b)`` that takes feature maps is something else.
    """
    for name in FOLDING_METHODS:
        method = getattr(type(module), name, None)
        if not isfunction(method) or name in vars(module):
            continue
        needed = [
            p
            for p in list(signature(method).parameters.values())[1:]
            if p.default is Parameter.empty
            and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        ]
        if not needed:
            yield name


def _is_refusal(method: object) -> bool:
    function = getattr(method, "function", None)
    return isinstance(function, partial) and function.func is _fold_if_unattended


def _attended_below(module: nn.Module) -> list[str]:
    return [n for n, m in module.named_modules() if m is not module and is_attended(m)]


def _fold_if_unattended(name: str, module: nn.Module, *args, **kwargs):
    sites = _attended_below(module)
    if sites:
        raise ModelError(
            f"{type(module).__name__}.{name}() would fold norms or merge branches of attended "
            f"modules ({first_few(sites)}): {ADVICE}"
        )
    return getattr(type(module), name)(module, *args, **kwargs)
