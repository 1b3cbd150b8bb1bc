"""Batch norms that normalize by the batches of all ranks."""

from typing import Any

from torch import nn

from composer_attn.ops.sync_batch_norm import SyncBatchNorm


def synchronize_norms(model: nn.Module) -> int:
    """Convert the batch norms of a model, other than the model itself, to synchronized ones.

    Parameters, running statistics and state-dict keys stay the same. timm's ``BatchNormAct2d``
    keeps its activation.

    Returns:
        The number of synchronized norms that the model has now.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> synchronize_norms(model), type(model[1]).__name__
        (1, 'SyncBatchNorm')
    """
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(_is_timms(module) for module in model.modules()):
        # torch's own conversion would drop the activation of such a norm.
        from timm.layers import convert_sync_batchnorm as convert
    convert(model)
    found = [each for each in model.modules() if isinstance(each, nn.SyncBatchNorm)]
    for norm in found:
        if type(norm) is nn.SyncBatchNorm:
            norm.__class__ = SyncBatchNorm  # which also runs on CPU
    return len(found)


def _is_timms(module: nn.Module) -> bool:
    return any(
        cls.__name__ == "BatchNormAct2d" and cls.__module__.partition(".")[0] == "timm"
        for cls in type(module).__mro__
    )
