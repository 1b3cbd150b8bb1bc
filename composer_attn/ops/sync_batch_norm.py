"""Synchronized batch norm for CPU."""

from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.errors import ModelError
from composer_attn.ops.fused import fits_norm
from composer_attn.ops.norm_kinds import ranks_of
from composer_attn.ops.region_sites import begin


class SyncBatchNorm(_BatchNorm):
    """``nn.SyncBatchNorm`` where torch's refuses to run: on several ranks on CPU.

    It is no subclass of torch's, as ``DistributedDataParallel`` refuses those on CPU. Arguments,
    results and state dict are the same.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of new statistics in the running ones; ``None`` for their average.
        affine: whether there are a weight and a bias.
        track_running_stats: whether there are running statistics.
        process_group: the ranks to synchronize; all by default.
        device: device of parameters and statistics.
        dtype: their dtype.

    Raises:
        ModelError: it is traced while it has to synchronize ranks.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x, norm = torch.randn(4, 3, 5, 5), SyncBatchNorm(3)
        >>> torch.equal(norm(x), nn.BatchNorm2d(3)(x))
        True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device=None,
        dtype=None,
    ):
        options = {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the statistics of all ranks in training, else by the running ones."""
        self._check_input_dim(input)
        return super().forward(input) if ranks_of(self) is None else _over_ranks(self, input)


def _over_ranks(norm: SyncBatchNorm, x: Tensor) -> Tensor:
    # Under torch.compile this leaves the call to Python.
    if not fits_norm(x, norm):
        raise ModelError(
            f"synchronized batch norm over several ranks computes batches of images that are not "
            f"traced, and parameters of one dtype on their device; got {tuple(x.shape)}, {x.dtype}"
        )
    return begin(x, norm, "auto").result()
