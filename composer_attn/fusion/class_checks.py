"""Check that a norm or convolution computes what its class does, so that it can be fused."""

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from composer_attn.fusion.dataflow import UndeterminedError
from composer_attn.fusion.deferring_convolution import DeferringConvolution, is_fresh
from composer_attn.fusion.deferring_norms import DeferringNorm, DeferringNormAct
from composer_attn.fusion.fused_norms import FusedModule, fused_class
from composer_attn.fusion.own_attention import activation_of_norm, norm_with_activation
from composer_attn.ops.norm_kinds import base_of, known_kind
from composer_attn.surgery.attend import is_attended


def check_norm(norm: nn.Module, kind: type[nn.Module], role: type[FusedModule]) -> None:
    """Check that a norm, of class ``kind`` before surgery, computes what its base class does."""
    found: Any = base_of(kind)
    if found is None:
        raise UndeterminedError("not a norm that can be fused")
    if is_parametrized(norm):
        raise UndeterminedError("its class is extended by a parametrization")
    if kind.forward is not found.forward or "forward" in vars(norm) or norm_with_activation(kind):
        raise UndeterminedError("it overrides forward")
    held: nn.Module = known_kind(norm).holder(norm)
    if held is not norm:
        _check_within(held)
    check_class(norm, role)


def _check_within(norm: nn.Module) -> None:
    """Check the norm that a norm calls."""
    plain = type(norm).forward is nn.BatchNorm2d.forward and "forward" not in vars(norm)
    if is_attended(norm) or is_parametrized(norm) or not plain:
        raise UndeterminedError("the norm within it is not a plain batch norm")


def role_of_deferring_norm(norm: nn.Module) -> type[DeferringNorm]:
    """Return the role of a norm that starts a fused region; timm's has a built-in activation."""
    return DeferringNormAct if norm_with_activation(type(norm)) else DeferringNorm


def check_deferring_norm(norm: nn.Module) -> None:
    """Check that a norm can start a fused region."""
    if is_attended(norm):
        raise UndeterminedError("it is attended itself")
    if not norm_with_activation(type(norm)):
        check_norm(norm, type(norm), DeferringNorm)
        return
    if is_parametrized(norm) or "forward" in vars(norm):
        raise UndeterminedError("it overrides forward")
    if activation_of_norm(norm) is None:
        raise UndeterminedError("its activation is not supported")
    check_class(norm, DeferringNormAct)


def can_defer(norm: nn.Module) -> bool:
    """Return whether :func:`check_deferring_norm` accepts a norm."""
    try:
        check_deferring_norm(norm)
    except UndeterminedError:
        return False
    return True


def can_defer_output(module: nn.Module) -> bool:
    """Return whether a module is a convolution whose output can be deferred."""
    plain = is_fresh(type(module)) and "forward" not in vars(module)
    return plain and can_extend(module, DeferringConvolution)


def can_extend(module: nn.Module, role: type[FusedModule]) -> bool:
    """Return whether :func:`check_class` accepts a module."""
    try:
        check_class(module, role)
    except UndeterminedError:
        return False
    return True


def check_class(module: nn.Module, role: type[FusedModule]) -> None:
    """Check that the class of a module can be extended by a mixin."""
    if is_parametrized(module):
        raise UndeterminedError("its class is extended by a parametrization")
    try:
        fused_class(type(module), role)
    except Exception as error:  # a class may raise anything when it is subclassed
        name = type(module).__name__
        raise UndeterminedError(f"the class {name} cannot be extended: {error}") from None
