"""Residual blocks: which children form the branch and the shortcut.

A block computes ``y = shortcut(x) + branch(x)``, with or without an activation after the addition.
The table is matched by qualified class name, so that timm need not be installed. Blocks that are
not in it are traced: see :mod:`composer_attn.surgery.block_tracing`.
"""

from dataclasses import dataclass

from torch import nn

from composer_attn.errors import ArgumentError


@dataclass(frozen=True)
class Block:
    """Layout of a residual block.

    Attributes:
        first: name of the first child of the branch.
        last: name of the child whose output ends the branch, before the addition.
        shortcut: name of the child on the shortcut, None (or absent) on blocks whose shortcut is
            the input itself; empty if blocks have no such child.
        has_shortcut: name of the attribute that is False or None on blocks that do not add their
            input; empty if all do.
        adds_last: whether the addition is the last operation, with no activation after it.
        from_input: whether the shortcut starts at the block's input, rather than after layers that
            it shares with the branch.
    """

    first: str
    last: str
    shortcut: str = ""
    has_shortcut: str = ""
    adds_last: bool = False
    from_input: bool = True


_TV = "torchvision.models."
_TIMM = "timm.models."

BLOCKS: dict[str, Block] = {
    f"{_TV}resnet.BasicBlock": Block("conv1", "bn2", "downsample"),
    f"{_TV}resnet.Bottleneck": Block("conv1", "bn3", "downsample"),
    f"{_TV}video.resnet.BasicBlock": Block("conv1", "conv2", "downsample"),
    f"{_TV}video.resnet.Bottleneck": Block("conv1", "conv3", "downsample"),
    f"{_TV}regnet.ResBottleneckBlock": Block("f", "f", "proj"),
    f"{_TV}mobilenetv2.InvertedResidual": Block(
        "conv", "conv", has_shortcut="use_res_connect", adds_last=True
    ),
    f"{_TV}mobilenetv3.InvertedResidual": Block(
        "block", "block", has_shortcut="use_res_connect", adds_last=True
    ),
    f"{_TV}efficientnet.MBConv": Block(
        "block", "block", has_shortcut="use_res_connect", adds_last=True
    ),
    f"{_TV}efficientnet.FusedMBConv": Block(
        "block", "block", has_shortcut="use_res_connect", adds_last=True
    ),
    f"{_TV}convnext.CNBlock": Block("block", "block", adds_last=True),
    f"{_TV}mnasnet._InvertedResidual": Block(
        "layers", "layers", has_shortcut="apply_residual", adds_last=True
    ),
    f"{_TIMM}resnet.BasicBlock": Block("conv1", "bn2", "downsample"),
    f"{_TIMM}resnet.Bottleneck": Block("conv1", "bn3", "downsample"),
    f"{_TIMM}res2net.Bottle2neck": Block("conv1", "bn3", "downsample"),
    f"{_TIMM}resnest.ResNestBottleneck": Block("conv1", "bn3", "downsample"),
    f"{_TIMM}convnext.ConvNeXtBlock": Block("conv_dw", "drop_path", "shortcut", adds_last=True),
    # In these, None means no shortcut, and an identity shortcut is an nn.Identity.
    f"{_TIMM}regnet.Bottleneck": Block("conv1", "conv3", "downsample", "downsample"),
    f"{_TIMM}byobnet.BasicBlock": Block("conv1_kxk", "conv2_kxk", "shortcut", "shortcut"),
    f"{_TIMM}byobnet.BottleneckBlock": Block("conv1_1x1", "conv3_1x1", "shortcut", "shortcut"),
    f"{_TIMM}_efficientnet_blocks.InvertedResidual": Block(
        "conv_pw", "bn3", has_shortcut="has_skip", adds_last=True
    ),
    f"{_TIMM}_efficientnet_blocks.DepthwiseSeparableConv": Block(
        "conv_dw", "bn2", has_shortcut="has_skip", adds_last=True
    ),
    f"{_TIMM}_efficientnet_blocks.EdgeResidual": Block(
        "conv_exp", "bn2", has_shortcut="has_skip", adds_last=True
    ),
}

_registered: dict[type, Block] = {}


def register_block(
    cls: type,
    *,
    first: str,
    last: str,
    shortcut: str = "",
    has_shortcut: str = "",
    adds_last: bool = False,
) -> None:
    """Register the layout of a custom residual block, for ``placement=``.

    Args:
        cls: the class of the block; subclasses are included.
        first: name of the first child of the residual branch.
        last: name of the child whose output ends the branch, before the addition.
        shortcut: name of the child on the shortcut, which may be None on some blocks; empty if
            blocks have no such child.
        has_shortcut: name of the attribute that is False or None on blocks that do not add their
            input; empty if all do.
        adds_last: whether the addition is the last operation, with no activation after it.

    Raises:
        ArgumentError: ``cls`` is not a subclass of ``torch.nn.Module``.

    Example:
        >>> from torch import nn
        >>> from composer_attn import apply_eca, register_block
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(128, 128, 3, padding=1)
        ...     def forward(self, x):
        ...         return x + (self.conv(x) if x.sum() > 0 else 0)
        >>> register_block(Block, first="conv", last="conv", adds_last=True)
        >>> [site.name for site in apply_eca(nn.Sequential(Block()), placement="residual").chosen]
        ['0.conv']
    """
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise ArgumentError(f"register_block takes a class of torch.nn.Module; got {cls!r}")
    _registered[cls] = Block(first, last, shortcut, has_shortcut, adds_last)


def known_block(module: nn.Module) -> Block | None:
    """Return the layout of a module whose class, or a base of it, is a known block, else None."""
    for cls in type(module).__mro__:
        found = _registered.get(cls) or BLOCKS.get(f"{cls.__module__}.{cls.__qualname__}")
        if found:
            return found
    return None
