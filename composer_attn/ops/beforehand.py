"""A convolution's attention where only numbers are asked for: in place, or before it runs."""

from typing import Any

import torch
from torch import Tensor

# Values of a map whose passes take longer than what saves them, for convolutions of size 1, whose
# scaled weights come from one call.
LARGE_FOR_CALLS = 1 << 17
# Values of a map that a pass of its own attends faster than the Python takes to hand its scales
# over to the norm after it: benchmarks/inference.py at batch 1 and 4.
_SMALL = 1 << 20


def is_small(x: Tensor) -> bool:
    """Return whether plain passes are faster than fewer passes that Python hands numbers to.

    On a CPU, and where only numbers are asked for. On a GPU, each pass is another launch.
    """
    return not torch.is_grad_enabled() and x.is_cpu and x.numel() <= _SMALL


def pays_off(x: Tensor, conv: Any, least: int) -> bool:
    """Return whether reading a convolution's input and weights is much faster than its output.

    This is asked at every site: without a stride, the output has as many positions as the input,
    and at most sites that is enough to know.

    Args:
        x: the input.
        conv: the convolution.
        least: the least number of values of its output.
    """
    values, width, channels = x.numel(), conv.in_channels, conv.out_channels
    most = values // width * channels
    return most >= least and values + 3 * width * channels // conv.groups < most


def is_plain_product(x: Tensor, conv: Any) -> bool:
    """Return whether a convolution multiplies each position, all of them, by its weights."""
    return (
        not conv.transposed
        and conv.groups == 1
        and set(conv.kernel_size) == {1}
        and set(conv.stride) == {1}
        and (isinstance(conv.padding, str) or not any(conv.padding))
        and conv.padding_mode == "zeros"
        and x.dim() == conv.weight.dim()
        and not torch.is_autocast_enabled(x.device.type)
    )


def attend_in_place(z: Tensor, call: Any) -> bool:
    """Attend the output of a convolution in place if that is faster; return whether it was.

    ``call`` is a :class:`.backends.excited_cpp.PreparedCall`.
    """
    return is_small(z) and call.attend(z)


def attended_output(x: Tensor, conv: Any, call: Any) -> Tensor | None:
    """Compute the attended output of a convolution of one image; ``None`` if it is not of size 1.

    The means of its output are linear in those of its input. So the scales are known before it
    runs, and are multiplied into its weights: no pass over the output is needed.

    Args:
        x: the input ``(1, C_in, *spatial)``.
        conv: the convolution, with the forward of torch.
        call: a :class:`.backends.excited_cpp.PreparedCall`.
    """
    if not is_plain_product(x, conv):
        return None
    found = call.weights(x, conv.weight, conv.bias)
    return None if found is None else conv._conv_forward(x, *found)
