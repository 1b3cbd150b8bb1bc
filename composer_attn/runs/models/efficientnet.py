"""EfficientNets of any size: depth, width and resolution of B0, scaled jointly or individually.

`Tan and Le, 2019 <https://arxiv.org/abs/1905.11946>`_: networks are best scaled in all three
dimensions at once, ``depth = alpha^phi``, ``width = beta^phi``, ``resolution = gamma^phi``, where
``alpha beta^2 gamma^2`` is about 2 (eq. 3), so that operations grow by about ``2^phi``.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig
from torchvision.ops.misc import SqueezeExcitation

from composer_attn.attention import find_attention
from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15
_SIZE = 224  # of B0's images
_STAGES = (  # expansion, kernel, stride, channels in, channels out, repeats (table 1)
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
_SMALLEST = 0.05
_LARGEST = {"depth": 8.0, "width": 8.0, "resolution": 5.0}


class Scale(NamedTuple):
    """The size of a network and its images relative to B0.

    Attributes:
        depth: factor of the repeats of each stage, rounded up.
        width: factor of the channels, rounded to multiples of 8.
        resolution: factor of the images' height and width.
    """

    depth: float
    width: float
    resolution: float


# The published variants, with manually rounded factors; torchvision has these networks.
PUBLISHED = {
    f"efficientnet_b{i}": Scale(depth, width, size / _SIZE)
    for i, (width, depth, size) in enumerate(
        (
            (1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300),
            (1.4, 1.8, 380), (1.6, 2.2, 456), (1.8, 2.6, 528), (2.0, 3.1, 600),
        )
    )
}  # fmt: skip


def compound_scale(
    phi: float = 0.0,
    depth: float | None = None,
    width: float | None = None,
    resolution: float | None = None,
) -> Scale:
    """Return the factors of a compound coefficient, or explicit ones that override them.

    Args:
        phi: the compound coefficient: operations grow by about ``2^phi``.
        depth: factor of the repeats; ``1.2^phi`` by default.
        width: factor of the channels; ``1.1^phi`` by default.
        resolution: factor of the images' height and width; ``1.15^phi`` by default.

    Raises:
        ArgumentError: a factor is not a positive number, or outside of the supported range.

    Example:
        >>> tuple(round(factor, 3) for factor in compound_scale(phi=2))
        (1.44, 1.21, 1.322)
    """
    phi = _number("phi", phi)
    given = {"depth": depth, "width": width, "resolution": resolution}
    bases = {"depth": ALPHA, "width": BETA, "resolution": GAMMA}
    bounded = max(-1000.0, min(phi, 1000.0))  # so that powers do not overflow before the check
    factors = {
        name: bases[name] ** bounded if value is None else _number(name, value)
        for name, value in given.items()
    }
    for name, factor in factors.items():
        if not _SMALLEST <= factor <= _LARGEST[name]:
            whose = f"{name} of phi={phi:g}" if given[name] is None else name
            raise ArgumentError(
                f"{whose} must be from {_SMALLEST:g} to {_LARGEST[name]:g} times that of B0; "
                f"got {factor:.4g}"
            )
    return Scale(**factors)


def _number(name: str, value: Any) -> float:
    if not is_real(value):
        raise ArgumentError(f"{name} must be a finite number; got {value!r}")
    return float(value)


def efficientnet(
    num_classes: int = 1000,
    phi: float = 0.0,
    depth: float | None = None,
    width: float | None = None,
    resolution: float | None = None,
    dropout: float | None = None,
    stochastic_depth: float = 0.2,
    attention: str = "se",
) -> nn.Module:
    """Build an EfficientNet: torchvision's B0 with its dimensions scaled.

    Args:
        num_classes: width of the last layer.
        phi: compound coefficient; see :func:`compound_scale`, also for the next three.
        depth: factor of the number of blocks in each stage.
        width: factor of the channels.
        resolution: factor of the image size; it does not change the network, whose attribute
            ``image_size`` holds the size.
        dropout: dropout probability before the last layer; by default ``0.2 + 0.05 phi``, at most
            0.5, which is within 0.05 of the published ones.
        stochastic_depth: probability of dropping the last block, decreasing linearly to the first.
        attention: attention of each block: ``se`` as published (a quarter of the block's input
            channels, SiLU), ``none``, or the name of a registered attention such as ``eca``, with
            its defaults.

    Raises:
        ArgumentError: a factor, a probability or the attention is invalid.

    Example:
        >>> sum(p.numel() for p in efficientnet().parameters())
        5288548
        >>> sum(p.numel() for p in efficientnet(attention="eca").parameters())
        4652084
    """
    scale = compound_scale(phi, depth, width, resolution)
    if dropout is None:
        dropout = min(0.5, max(0.0, 0.2 + 0.05 * phi))
    for name, value in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
        if not 0 <= _number(name, value) < 1:
            raise ArgumentError(f"{name} must be at least 0 and less than 1; got {value!r}")
    block = partial(MBConv, se_layer=_attention_layer(attention))
    stages = [
        MBConvConfig(*stage, width_mult=scale.width, depth_mult=scale.depth, block=block)
        for stage in _STAGES
    ]
    network: Any = EfficientNet(stages, dropout, stochastic_depth, num_classes)
    network.image_size = image_size(scale, _SIZE)
    return network


def _attention_layer(name: str) -> Any:
    """Return the builder of a block's attention, with the signature that torchvision expects."""
    if name == "se":
        return SqueezeExcitation
    if name == "none":
        return lambda channels, squeeze_channels, activation: nn.Identity()
    build = find_attention(name)
    return lambda channels, squeeze_channels, activation: build(channels)


def scale_of(section: Mapping[str, Any]) -> Scale | None:
    """Return the scale of a model section's network; None if it is not a scaled network.

    Raises:
        ArgumentError: a factor is invalid.
    """
    name = section.get("name")
    if name == "efficientnet":
        return compound_scale(
            *(section.get(key, 0.0 if key == "phi" else None)
              for key in ("phi", "depth", "width", "resolution"))
        )  # fmt: skip
    return PUBLISHED.get(str(name))


def image_size(scale: Scale, size: int) -> int:
    """Return the size of a network's images, given that of B0."""
    return round(size * scale.resolution)
