"""Activations supported by the passes: ``phi`` and its derivative, in plain torch.

To add one, add a line here, a struct in ``backends/cpp_sources/activations.h``, its name in
``backends/cpp_sources/region.h`` and a branch in ``backends/elementwise_kernels.py``. All
operations, backends, dtypes and tests then cover it.

===========  =======================================  ==================================
name         phi(z)                                   as a module
===========  =======================================  ==================================
identity     z                                        nn.Identity
relu         max(z, 0)                                nn.ReLU
relu6        min(max(z, 0), 6)                        nn.ReLU6
leaky_relu   z, or alpha z where z <= 0               nn.LeakyReLU(alpha)
silu         z sigmoid(z)                             nn.SiLU
hardswish    z min(max(z + 3, 0), 6) / 6              nn.Hardswish
gelu         z Phi(z), Phi the normal CDF             nn.GELU
gelu_tanh    its approximation by tanh                nn.GELU("tanh")
mish         z tanh(log(1 + exp(z)))                  nn.Mish
elu          z, or alpha (exp(z) - 1) where z <= 0    nn.ELU(alpha)
===========  =======================================  ==================================
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer_attn.errors import ArgumentError


class Activation(NamedTuple):
    """An activation by name.

    Attributes:
        name: a name in the table above.
        alpha: parameter of ``leaky_relu`` and ``elu``. Of ``hardswish``, whose derivative jumps at
            -3 and 3: 1 if it is 0 and 1 there, as outside; 0 if it is -0.5 and 1.5, as inside.
            Unused by the others.
    """

    name: str
    alpha: float = 0.0


IDENTITY, RELU = Activation("identity"), Activation("relu")
# Newer versions of torch count -3 and 3 to the outside (2.14 does, 2.7 does not).
_ONE, _THREE = (torch.full((), number, device="cpu") for number in (1.0, 3.0))
HARDSWISH = Activation("hardswish", float(torch.ops.aten.hardswish_backward(_ONE, _THREE) == 1))


def _gelu_tanh_slope(z: Tensor, alpha: float) -> Tensor:
    """``phi = z sigmoid(2 t)`` where ``t = sqrt(2 / pi) (z + 0.044715 z^3)``."""
    factor = 2 * sqrt(2 / pi)
    s = torch.sigmoid(factor * z * (1 + 0.044715 * z * z))
    return s + z * s * (1 - s) * factor * (1 + 3 * 0.044715 * z * z)


def _mish_slope(z: Tensor, alpha: float) -> Tensor:
    w = torch.tanh(F.softplus(z))
    return w + z * (1 - w * w) * torch.sigmoid(z)


def _silu_slope(z: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_slope(z: Tensor, alpha: float) -> Tensor:
    density = torch.exp(-0.5 * z * z) / sqrt(2 * pi)
    return 0.5 * (1 + torch.erf(z / sqrt(2))) + z * density


def _hardswish_slope(z: Tensor, alpha: float) -> Tensor:
    inside = z / 3 + 0.5
    inside = torch.where(z.abs() == 3, inside - alpha * z / 6, inside)
    return torch.where(z > 3, 1.0, torch.where(z < -3, 0.0, inside))


# phi and phi' as functions of z and alpha. At NaN, a ReLU passes the gradient, as in torch.
_Formula = Callable[[Tensor, float], Tensor]
_TABLE: dict[str, tuple[_Formula, _Formula]] = {
    "identity": (lambda z, alpha: z, lambda z, alpha: torch.ones_like(z)),
    "relu": (lambda z, alpha: z.relu(), lambda z, alpha: (~(z <= 0)).to(z.dtype)),
    "relu6": (
        lambda z, alpha: F.relu6(z),
        lambda z, alpha: (~((z <= 0) | (z >= 6))).to(z.dtype),
    ),
    "leaky_relu": (
        lambda z, alpha: F.leaky_relu(z, alpha),
        lambda z, alpha: torch.where(z > 0, torch.ones_like(z), alpha),
    ),
    "silu": (lambda z, alpha: F.silu(z), _silu_slope),
    "hardswish": (lambda z, alpha: F.hardswish(z), _hardswish_slope),
    "gelu": (lambda z, alpha: F.gelu(z), _gelu_slope),
    "gelu_tanh": (lambda z, alpha: F.gelu(z, approximate="tanh"), _gelu_tanh_slope),
    "mish": (lambda z, alpha: F.mish(z), _mish_slope),
    "elu": (
        lambda z, alpha: F.elu(z, alpha),
        lambda z, alpha: torch.where(z > 0, 1.0, alpha * torch.exp(z.clamp_max(0))),
    ),
}
ACTIVATIONS = tuple(_TABLE)

# Activation modules by exact type: a subclass may compute anything.
_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.Identity: lambda module: IDENTITY,
    nn.ReLU: lambda module: RELU,
    nn.ReLU6: lambda module: Activation("relu6"),
    nn.LeakyReLU: lambda module: Activation("leaky_relu", float(module.negative_slope)),
    nn.SiLU: lambda module: Activation("silu"),
    nn.Hardswish: lambda module: HARDSWISH,
    nn.GELU: lambda module: Activation({"none": "gelu", "tanh": "gelu_tanh"}[module.approximate]),
    nn.Mish: lambda module: Activation("mish"),
    nn.ELU: lambda module: Activation("elu", float(module.alpha)),
}


def activation_of(module: nn.Module, kind: type[nn.Module] | None = None) -> Activation | None:
    """Return the activation that a module computes, or ``None`` if it is not in the table.

    Args:
        module: the module.
        kind: the class that it had before that was extended; its own by default.

    Example:
        >>> activation_of(nn.LeakyReLU(0.1, inplace=True))
        Activation(name='leaky_relu', alpha=0.1)
        >>> activation_of(nn.Softplus()) is None
        True
    """
    describe = _MODULES.get(kind or type(module))
    return None if describe is None else describe(module)


def find_activation(activation: Activation | str | nn.Module) -> Activation:
    """Return an activation given as such, by name, or as a module.

    Raises:
        ArgumentError: it is not in the table.

    Example:
        >>> find_activation("silu"), find_activation(nn.GELU("tanh"))
        (Activation(name='silu', alpha=0.0), Activation(name='gelu_tanh', alpha=0.0))
    """
    found: object = activation
    if isinstance(activation, nn.Module):
        found = activation_of(activation)
    elif isinstance(activation, str):
        # The defaults of torch's functions.
        defaults = {"leaky_relu": 0.01, "elu": 1.0, "hardswish": HARDSWISH.alpha}
        found = Activation(activation, defaults.get(activation, 0.0))
    if not isinstance(found, Activation) or found.name not in _TABLE:
        raise ArgumentError(
            f"activation must be one of {', '.join(ACTIVATIONS)}, or such a module; "
            f"got {activation!r}"
        )
    return found


def phi(z: Tensor, activation: Activation) -> Tensor:
    """Apply an activation."""
    return _TABLE[activation.name][0](z, activation.alpha)


def slope(z: Tensor, activation: Activation) -> Tensor:
    """Compute the derivative of an activation."""
    return _TABLE[activation.name][1](z, activation.alpha)
