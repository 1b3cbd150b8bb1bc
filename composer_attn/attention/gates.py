"""Gates: the functions that turn an attention's logits into scales.

=============  ============================  =====================================
gate           ``start='paper'``             ``start='identity'`` (1 where z is 0)
=============  ============================  =====================================
sigmoid        1 / (1 + exp(-z))             2 / (1 + exp(-z))
hard_sigmoid   clip(z / 6 + 1/2, 0, 1)       2 clip(z / 6 + 1/2, 0, 1)
tanh           tanh(z)                       1 + tanh(z)
relu           max(z, 0)                     max(1 + z, 0)
=============  ============================  =====================================

The SENet paper compares sigmoid, tanh and ReLU (table 12); MobileNetV3 introduced the hard sigmoid.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from composer_attn.errors import ArgumentError
from composer_attn.ops.excitations import GATES as PLAIN_GATES

Gate = Callable[[Tensor], Tensor]


def _doubled_sigmoid(z: Tensor) -> Tensor:
    return 2 * torch.sigmoid(z)


def _doubled_hard_sigmoid(z: Tensor) -> Tensor:
    return 2 * F.hardsigmoid(z)


def _one_plus_tanh(z: Tensor) -> Tensor:
    return 1 + torch.tanh(z)


def _relu_from_one(z: Tensor) -> Tensor:
    return torch.relu(1 + z)


# Each "identity" gate is exactly 1 at z = 0 in every floating-point format, with nonzero slope.
GATES: dict[str, dict[str, Gate]] = {
    "paper": {name: gate.value for name, gate in PLAIN_GATES.items()},
    "identity": {
        "sigmoid": _doubled_sigmoid,
        "hard_sigmoid": _doubled_hard_sigmoid,
        "tanh": _one_plus_tanh,
        "relu": _relu_from_one,
    },
}

# Gates that are constant on an interval: torch's gradient is 0 there, even for an infinite one.
CLIPPED = tuple(name for name, gate in PLAIN_GATES.items() if gate.clips)

# The derivative of each gate, as a function of its output.
SLOPES: dict[str, dict[str, Gate]] = {
    "paper": {name: gate.slope for name, gate in PLAIN_GATES.items()},
    "identity": {
        "sigmoid": lambda s: torch.addcmul(s, s, s, value=-0.5),
        "hard_sigmoid": lambda s: ((s > 0) & (s < 2)) * (1 / 3),
        "tanh": lambda s: s * (2 - s),
        "relu": lambda s: ~(s <= 0),
    },
}

# The smallest and largest output of each gate.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "paper": {
        "sigmoid": (0, 1),
        "hard_sigmoid": (0, 1),
        "tanh": (-1, 1),
        "relu": (0, float("inf")),
    },
    "identity": {
        "sigmoid": (0, 2),
        "hard_sigmoid": (0, 2),
        "tanh": (0, 2),
        "relu": (0, float("inf")),
    },
}


def find_range(gate: Gate, channels: int) -> tuple[float, float]:
    """Determine the range of a custom gate by evaluating it far from 0.

    A bound is infinite if the gate has not converged there.
    """
    far = torch.tensor([-1e4, -1e3, 1e3, 1e4]).unsqueeze(1).expand(4, channels)
    with torch.no_grad():
        ends = [row[0].item() for row in gate(far)]
    low = ends[0] if ends[0] == ends[1] else float("-inf")
    return low, ends[3] if ends[3] == ends[2] else float("inf")


def find_gate(gate: str, start: str) -> Gate:
    """Return the function of a gate.

    Raises:
        ArgumentError: ``gate`` or ``start`` is not one of the names in the table above.
    """
    if not isinstance(start, str) or start not in GATES:
        raise ArgumentError(f"start must be one of {', '.join(GATES)}; got {start!r}")
    if not isinstance(gate, str) or gate not in GATES[start]:
        raise ArgumentError(f"gate must be one of {', '.join(GATES[start])}; got {gate!r}")
    return GATES[start][gate]
