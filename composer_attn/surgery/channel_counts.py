"""The number of channels at a module, from the convolutions and norms in it."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from composer_attn.ops.sync_batch_norm import SyncBatchNorm
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.existing_attention.known import is_attention

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def channels_out(module: nn.Module) -> int:
    """Return a module's output channels, by its last convolution or norm; 0 if it has none."""
    for part in reversed(list(_parts(module))):
        if isinstance(part, CONVOLUTIONS):
            return part.out_channels
        if isinstance(part, NORMS):
            return norm_channels(part)
    return 0


def channels_in(module: nn.Module) -> int:
    """Return a module's input channels, by its first convolution or norm; 0 if it has none."""
    for part in _parts(module):
        if isinstance(part, CONVOLUTIONS):
            return part.in_channels
        if isinstance(part, NORMS):
            return norm_channels(part)
    return 0


def _parts(module: nn.Module, above: tuple[nn.Module, ...] = ()) -> Iterator[nn.Module]:
    """Yield a module and its descendants, skipping attentions, which have other channels."""
    yield module
    above = (*above, module)
    own = CHILD if is_attended(module) else None
    for name, child in module.named_children():
        # A module may contain itself.
        if name != own and not any(child is each for each in above) and not is_attention(child):
            yield from _parts(child, above)


def norm_channels(norm: nn.GroupNorm | _NormBase) -> int:
    """Return the number of channels that a norm normalizes."""
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
