"""Synchronized batch norm that also runs on CPU."""

from torch import Tensor, nn

from composer_attn.ops.autograd_path import traced
from composer_attn.ops.begun import begin
from composer_attn.ops.fused import fits_norm


class SyncBatchNorm(nn.SyncBatchNorm):
    """``nn.SyncBatchNorm``, which also synchronizes several ranks on CPU, where torch's refuses to.

    Arguments, results and state dict are those of ``nn.SyncBatchNorm``; on any other device torch's
    own forward runs.

    Example:
        >>> import torch
        >>> x, norm = torch.randn(4, 3, 5, 5), SyncBatchNorm(3)
        >>> torch.allclose(norm(x), nn.BatchNorm2d(3)(x), atol=1e-6)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the statistics of all ranks in training, else by the running ones."""
        if self.training and input.is_cpu and not traced() and fits_norm(input, self):
            return begin(input, self, "auto").result()
        return super().forward(input)
