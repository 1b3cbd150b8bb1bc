"""Classify torch functions and methods as they arrive in ``__torch_function__``."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_attn.ops.activations import HARDSWISH, RELU, Activation

ADDITIONS_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
ADDITIONS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *ADDITIONS_IN_PLACE}

# Functions and methods that apply an activation: its name, and the defaults of further arguments.
_INPLACE = {"inplace": False}
_LEAKY = {"negative_slope": 0.01}
_TANH = {"min_val": -1.0, "max_val": 1.0}
_ACTIVATIONS: dict[Any, tuple[str, dict[str, Any]]] = {
    F.relu: ("relu", _INPLACE),
    torch.relu: ("relu", {}),
    Tensor.relu: ("relu", {}),
    F.relu6: ("relu6", _INPLACE),
    F.hardtanh: ("hardtanh", {**_TANH, **_INPLACE}),
    F.leaky_relu: ("leaky_relu", {**_LEAKY, **_INPLACE}),
    F.silu: ("silu", _INPLACE),
    F.hardswish: ("hardswish", _INPLACE),
    F.gelu: ("gelu", {"approximate": "none"}),
    F.mish: ("mish", _INPLACE),
    F.elu: ("elu", {"alpha": 1.0, **_INPLACE}),
    F.relu_: ("relu", {"inplace": True}),
    torch.relu_: ("relu", {"inplace": True}),
    Tensor.relu_: ("relu", {"inplace": True}),
    F.leaky_relu_: ("leaky_relu", {**_LEAKY, "inplace": True}),
    F.elu_: ("elu", {"alpha": 1.0, "inplace": True}),
}
ACTIVATIONS = set(_ACTIVATIONS)
_METHODS = {"relu": Tensor.relu, "relu_": Tensor.relu_}


def called_activation(func: Any, args: tuple, kwargs: dict) -> tuple[Activation, bool] | None:
    """Return the activation that a call applies and whether it is in place, or ``None``.

    Args:
        func: the function, or the name of a method.
        args: its positional arguments, the tensor first.
        kwargs: its keyword arguments.
    """
    found = _ACTIVATIONS.get(_METHODS.get(func) if isinstance(func, str) else func)
    if found is None or not args:
        return None
    name, options = found
    if name == "relu" and len(args) == 1 and kwargs.keys() <= options.keys():  # the usual case
        return RELU, bool(kwargs.get("inplace", options.get("inplace", False)))
    if len(args) > 1 + len(options) or not kwargs.keys() <= options.keys():
        return None
    given = dict(options)
    for place, option in enumerate(options, start=1):
        if place < len(args):
            given[option] = args[place]
    given.update(kwargs)
    in_place = bool(given.pop("inplace", False))
    if name == "hardtanh":  # nn.ReLU6 calls hardtanh
        return (Activation("relu6"), in_place) if tuple(given.values()) == (0, 6) else None
    if name == "gelu":
        known = {"none": "gelu", "tanh": "gelu_tanh"}.get(given["approximate"])
        return None if known is None else (Activation(known), in_place)
    if name == "hardswish":
        return HARDSWISH, in_place
    alpha = next(iter(given.values()), 0.0)
    return (Activation(name, float(alpha)), in_place) if isinstance(alpha, (int, float)) else None


# Names below that this version of torch lacks (such as rename_, with named tensors removed).
GONE: set[str] = set()


def _methods(names: str) -> set:
    GONE.update(name for name in names.split() if not hasattr(Tensor, name))
    return {getattr(Tensor, name) for name in names.split() if name not in GONE}


def _getters(names: str) -> set:
    return {attribute.__get__ for attribute in _methods(names)}


def _setters(names: str) -> set:
    return {attribute.__set__ for attribute in _methods(names)}


# Attributes that need no values, or that refer to this very tensor rather than to a view of it.
ASKS = _getters(
    "shape dtype device layout ndim requires_grad is_cuda is_cpu is_meta is_sparse is_quantized "
    "is_mkldnn is_nested itemsize nbytes is_leaf retains_grad output_nr grad _version _base"
) | _methods(
    "size dim numel nelement ndimension element_size is_floating_point is_complex get_device "
    "__len__ stride is_contiguous is_inference _is_view"
)

# Functions that read or change the gradient that passes through a tensor.
SEES_GRADIENT = (
    _methods("register_hook register_post_accumulate_grad_hook retain_grad")
    | _getters("grad_fn _backward_hooks")
    | _setters("_backward_hooks")
)

# Functions that change the history of the tensor itself, not of a view of it.
CHANGES_HISTORY = _methods("requires_grad_ detach_ backward") | _setters("requires_grad grad")

# In-place operations that change a tensor's shape or memory for every holder.
RESHAPES_IN_PLACE = _methods(
    "set_ resize_ resize_as_ unsqueeze_ squeeze_ t_ transpose_ swapaxes_ swapdims_ as_strided_ "
    "rename_"
) | _setters("data")
