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

    Known to users as :class:`composer_attn.ECA`. The Trainer's optimizers follow by themselves.
    Logs ``eca/num_layers`` and ``eca/num_parameters``.

    Args:
        kernel_size: odd number of weights; ``None`` is the paper's adaptive rule;
            ``{pattern: size}`` where it differs by stage.
        min_channels: attend where there are at least this many channels; 128 by default, and with
            ``replace`` 1.
        keywords: those of :func:`composer_attn.functional.apply_eca`, and what is raised for bad
            ones; ``fuse`` and ``backend`` as of :class:`composer_attn.Attention`.

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
