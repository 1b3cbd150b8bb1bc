"""Batch norms that normalize by the batches of all ranks."""

from typing import Any

from torch import nn

from composer_attn.errors import ModelError
from composer_attn.ops.sync_batch_norm import SyncBatchNorm
from composer_attn.surgery.attend import set_class


def synchronize_norms(model: nn.Module, on_cpu: bool) -> None:
    """Convert the batch norms of a model, other than the model itself, to synchronized ones.

    Parameters, running statistics and state-dict keys stay the same. timm's ``BatchNormAct2d``
    keeps its activation.

    Args:
        model: the model.
        on_cpu: whether it will run on CPU, for which torch has no synchronized batch norm.

    Raises:
        ModelError: it will run on CPU, and contains norms of timm's with an activation. Nothing was
            changed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> synchronize_norms(model, on_cpu=True)
        >>> type(model[1]).__name__
        'SyncBatchNorm'
    """
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(_is_timms(module) for module in model.modules()):
        if on_cpu:
            raise ModelError("timm's BatchNormAct2d cannot be synchronized on CPU")
        # torch's own conversion would drop the activation of such a norm.
        from timm.layers import convert_sync_batchnorm as convert
    convert(model)
    for norm in model.modules():
        if on_cpu and type(norm) is nn.SyncBatchNorm:
            set_class(norm, SyncBatchNorm)


def _is_timms(module: nn.Module) -> bool:
    return any(
        cls.__name__ == "BatchNormAct2d" and cls.__module__.partition(".")[0] == "timm"
        for cls in type(module).__mro__
    )
