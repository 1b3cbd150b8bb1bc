"""Efficient Channel Attention as a Composer algorithm."""

from typing_extensions import Unpack

from composer_attn.algorithms.base import DEFAULTS, AlgorithmKeywords, AttentionAlgorithm
from composer_attn.attention import EfficientChannelAttention
from composer_attn.attention.signatures import signed
from composer_attn.functional.eca import ECAOptions, KernelSize


class _Keywords(AlgorithmKeywords, ECAOptions, total=False):
    pass


class ComposerAttnECA(AttentionAlgorithm):
    """Add Efficient Channel Attention after the convolutions of the model, at ``Event.INIT``.

    Public name: :class:`composer_attn.ECA`. The Trainer's optimizers are updated automatically.
    Logs ``eca/num_layers`` and ``eca/num_parameters``.

    Args:
        kernel_size: odd number of weights; ``None`` is the paper's adaptive rule;
            ``{pattern: size}`` sets it by stage.
        min_channels: attend only sites with at least this many channels; 128 by default, or 1 with
            ``replace``.
        keywords: those of :func:`composer_attn.functional.apply_eca`, with the same errors;
            ``fuse`` and ``backend`` as in :class:`composer_attn.Attention`.

    Example:
        >>> from composer_attn import ECA
        >>> ECA(kernel_size=3).key
        'eca'
    """

    @signed(_Keywords, EfficientChannelAttention, *DEFAULTS)
    def __init__(
        self,
        kernel_size: KernelSize = None,
        min_channels: int | None = None,
        **keywords: Unpack[_Keywords],
    ):
        own = {"kernel_size": kernel_size, "min_channels": min_channels}
        super().__init__(EfficientChannelAttention, **own, **keywords)


ECA = ComposerAttnECA
