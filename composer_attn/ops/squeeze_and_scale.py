"""Plain-torch reference of the two passes over a feature map: squeeze it, and scale it.

Shapes: ``N`` samples, ``C`` channels, ``*spatial`` one to three spatial dimensions.
"""

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def channel_means(x: Tensor, channels: int) -> Tensor:
    """Average each channel of each sample over space: the "squeeze" of the SENet paper (eq. 2).

    Means of half-precision inputs are computed and returned in float32: a sum over many positions
    loses digits in 16 bits.

    Args:
        x: feature map ``(N, C, *spatial)`` with 1, 2 or 3 spatial dimensions.
        channels: the expected number of channels ``C``.

    Returns:
        Means ``(N, C)``.

    Raises:
        ValueError: ``x`` has an unexpected number of dimensions or channels.
    """
    _check_shape(x, channels)
    dtype = torch.float32 if x.dtype in _HALF else None
    return x.mean(dim=tuple(range(2, x.dim())), dtype=dtype)


def channel_maxima(x: Tensor, channels: int) -> Tensor:
    """Take the maximum of each channel of each sample over space (SENet paper, table 11).

    Shapes and errors are those of :func:`channel_means`.
    """
    _check_shape(x, channels)
    return x.amax(dim=tuple(range(2, x.dim())))


def channel_deviations(x: Tensor, channels: int) -> Tensor:
    """Compute the standard deviation of each channel of each sample over space.

    ``sqrt(mean((x - mean(x))^2))``, without Bessel's correction, so that it is 0 for a single
    position. Where it is 0, so is its gradient. Half-precision inputs, shapes and errors are as in
    :func:`channel_means`.
    """
    _check_shape(x, channels)
    x = x.float() if x.dtype in _HALF else x
    return x.std(dim=tuple(range(2, x.dim())), correction=0)


def channel_vectors(x: Tensor, channels: int) -> Tensor:
    """Return the channel vector of every position, without pooling (SENet paper, "NoSqueeze").

    Args and errors are those of :func:`channel_means`.

    Returns:
        ``(N * positions, C)``; a view if ``x`` is in channels-last memory format.
    """
    _check_shape(x, channels)
    return x.movedim(1, -1).flatten(0, -2)


def scale_channels(x: Tensor, excitation: Tensor) -> Tensor:
    """Multiply each channel of each sample by its excitation (SENet paper, eq. 4).

    Args:
        x: feature map ``(N, C, *spatial)``.
        excitation: scales ``(N, C)``; cast to the dtype of ``x``.

    Returns:
        A tensor like ``x``, in the same dtype and memory format.
    """
    return x * excitation.to(x.dtype)[(...,) + (None,) * (x.dim() - 2)]


def scale_vectors(x: Tensor, excitation: Tensor) -> Tensor:
    """Multiply each channel at each position by its excitation.

    Args:
        x: feature map ``(N, C, *spatial)``.
        excitation: scales ``(N * positions, C)``, in the order of :func:`channel_vectors`.

    Returns:
        A tensor like ``x``, in the same dtype and memory format.
    """
    return x * excitation.to(x.dtype).reshape(x.movedim(1, -1).shape).movedim(-1, 1)


def _check_shape(x: Tensor, channels: int) -> None:
    # Under torch.jit.trace sizes are tensors, and comparing them emits a TracerWarning.
    expected = 3 <= x.dim() <= 5 and (torch.jit.is_tracing() or x.shape[1] == channels)
    if not expected:
        raise ValueError(
            f"channel attention over {channels} channels takes inputs of shape "
            f"(N, {channels}, *spatial) with 1, 2 or 3 spatial dimensions, got {tuple(x.shape)}"
        )
