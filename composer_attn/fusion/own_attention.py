"""Attentions of torchvision, timm and this package that a network came with, and can be fused."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention
from composer_attn.errors import ArgumentError
from composer_attn.fusion.dataflow import UndeterminedError
from composer_attn.fusion.fused_norms import is_fused
from composer_attn.fusion.handoff import has_own_call, is_watched
from composer_attn.ops.activations import Activation, activation_of
from composer_attn.ops.excitations import Described, neighbours, one_layer, two_layers
from composer_attn.ops.pending_region import excitation_of
from composer_attn.surgery.attend import attention_of, find_attended, is_attended, original_class

# timm's classes are matched by name, so that timm need not be installed.
_TIMMS_ACTIVATIONS = {
    "Swish": Activation("silu"),
    "Mish": Activation("mish"),
    "HardSwish": Activation("hardswish", 1.0),  # x relu6(x + 3) / 6, and relu6 is flat at its ends
    "GELU": Activation("gelu"),
}
_NORMS_WITH_ACT = ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d", "GroupNormAct")
_GATES = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hard_sigmoid", nn.Tanh: "tanh", nn.ReLU: "relu"}
_TIMMS_GATES = {"Sigmoid": "sigmoid", "HardSigmoid": "hard_sigmoid", "Tanh": "tanh"}


def is_from(cls: type, package: str, *names: str) -> bool:
    """Return whether a class is defined in ``package`` under one of ``names``."""
    return cls.__name__ in names and cls.__module__.partition(".")[0] == package


def _first_of(module: Any) -> Described:
    if "sigmoid" in module._modules:  # the layout of timm's legacy networks
        layers = (_layer(module.fc1), _layer(module.fc2), _inner(module.relu))
        return two_layers(*layers, _gate(module.sigmoid))
    # With a norm in between, or maxima in addition to averages, it is a different attention.
    if module.add_maxpool or type(module.bn) is not nn.Identity:
        raise UndeterminedError("its squeeze is not a plain average, or it contains a norm")
    return two_layers(
        _layer(module.fc1), _layer(module.fc2), _inner(module.act), _gate(module.gate)
    )


def _effective(module: Any) -> Described:
    if module.add_maxpool:
        raise UndeterminedError("its squeeze is not a plain average")
    return one_layer(_layer(module.fc), _gate(module.gate))


def _efficient(module: Any) -> Described:
    if module.conv2 is not None:
        raise UndeterminedError("it has two convolutions")
    return neighbours(0, _layer(module.conv, nn.Conv1d), _gate(module.gate))


def _ours(module: Any) -> Described:
    """Describe an attention of this package that the network was built with."""
    if module.squeeze != "avg":
        raise UndeterminedError(f"squeeze={module.squeeze!r} is not an average")
    found = excitation_of(module)
    if found is None or type(module).excitation is not ChannelAttention.excitation:
        raise UndeterminedError("its scales have no manual gradient")
    excitation, parameters = found
    return Described(module.channels, excitation.layers, parameters, excitation)


_KNOWN: dict[tuple[str, str], Callable[[Any], Described]] = {
    ("torchvision", "SqueezeExcitation"): lambda module: two_layers(
        *(_layer(module.fc1), _layer(module.fc2)),
        *(_inner(module.activation), _gate(module.scale_activation)),
    ),
    ("timm", "SqueezeExcite"): lambda module: two_layers(
        *(_layer(module.conv_reduce), _layer(module.conv_expand)),
        *(_inner(module.act1), _gate(module.gate)),
    ),
    ("timm", "SEModule"): _first_of,
    ("timm", "EffectiveSEModule"): _effective,
    ("timm", "EcaModule"): _efficient,
    ("composer_attn", "ChannelAttention"): _ours,
}


def known_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of a known attention, or ``None`` if the module is not one."""
    for cls in type(module).__mro__:
        if (cls.__module__.partition(".")[0], cls.__name__) in _KNOWN:
            return cls
    return None


def is_known(module: nn.Module) -> bool:
    """Return whether a module is a known attention with an unmodified forward."""
    cls = known_class(module)
    return (
        cls is not None
        and (type(module).forward is cls.forward or is_fused(module))
        and not is_attended(module)
        and "forward" not in vars(module)
    )


def find_own(model: nn.Module) -> list[nn.Module]:
    """Return the network's own attentions whose classes are known, without those of a surgery."""
    added = {m for site in find_attended(model).values() for m in attention_of(site).modules()}
    return [module for module in model.modules() if module not in added and is_known(module)]


def describe(module: nn.Module, cls: type[nn.Module]) -> Described:
    """Describe an attention of a known class in its present state.

    Raises:
        UndeterminedError: it has layers or settings that are not supported.
    """
    try:
        return _KNOWN[cls.__module__.partition(".")[0], cls.__name__](module)
    except (ArgumentError, AttributeError) as error:
        raise UndeterminedError(str(error)) from None


def described_for(module: nn.Module, cls: type[nn.Module], x: Tensor) -> Described | None:
    """Describe an attention for the input ``x``; ``None`` if it has to be called."""
    if x.dim() != 4 or _hooks_on_all():
        return None
    for each in module._modules.values():  # faster than children()
        if each is not None and (is_watched(each) or has_own_call(each)):
            return None
    try:
        found = describe(module, cls)
    except UndeterminedError:
        return None
    if found.channels not in (0, x.shape[1]) or not all(_fits(p, x) for p in found.parameters):
        return None
    return found


def _fits(parameter: Tensor | None, x: Tensor) -> bool:
    """Return whether a parameter fits the input: same device, and same dtype unless autocast."""
    if parameter is None:
        return True
    if type(parameter) not in (nn.Parameter, Tensor) or parameter.device != x.device:
        return False
    return parameter.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)


def _hooks_on_all() -> bool:
    """Return whether any global module hooks are registered."""
    hooks = torch.nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def activation_in(module: nn.Module) -> Activation | None:
    """Describe an activation module of torch or timm, attended or not; ``None`` if unknown."""
    kind = original_class(module) if is_attended(module) else type(module)
    if "forward" in vars(module):
        return None
    if is_from(kind, "timm", *_TIMMS_ACTIVATIONS):
        return _TIMMS_ACTIVATIONS[kind.__name__]
    return activation_of(module, kind)


def activation_of_norm(norm: nn.Module) -> Activation | None:
    """Describe the built-in activation of one of timm's norms; ``None`` if unknown."""
    if type(getattr(norm, "drop", None)) is not nn.Identity:
        return None
    act = norm._modules.get("act")
    return None if act is None else activation_in(act)


def norm_with_activation(cls: type) -> bool:
    """Return whether a class is one of timm's norms that end with ``act(drop(...))``.

    So is a subclass with its forward.
    """
    found = next((each for each in cls.__mro__ if is_from(each, "timm", *_NORMS_WITH_ACT)), None)
    return found is not None and cls.forward is found.forward  # type: ignore[attr-defined]


def _inner(module: nn.Module) -> Activation:
    found = activation_in(module)
    if found is None:
        raise UndeterminedError(f"its {type(module).__name__} is not a supported activation")
    return found


def _gate(module: nn.Module) -> str:
    kind = type(module)
    if kind in _GATES:
        return _GATES[kind]
    if is_from(kind, "timm", *_TIMMS_GATES):
        return _TIMMS_GATES[kind.__name__]
    if kind is nn.Identity:
        raise UndeterminedError("it has no gate")
    raise UndeterminedError(f"its gate {kind.__name__} is not supported")


def _layer(module: Any, kind: type[nn.Module] = nn.Conv2d) -> Any:
    if type(module) is not kind:
        raise UndeterminedError(f"its layer {type(module).__name__} is not supported")
    return module
