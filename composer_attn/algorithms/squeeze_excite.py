"""Squeeze-and-Excitation as a Composer algorithm."""

from typing_extensions import Unpack

from composer_attn.algorithms.base import DEFAULTS, AlgorithmKeywords, AttentionAlgorithm
from composer_attn.attention import SqueezeExcitation
from composer_attn.attention.signatures import signed
from composer_attn.functional.squeeze_excite import Latent, SqueezeExciteOptions


class _Keywords(AlgorithmKeywords, SqueezeExciteOptions, total=False):
    pass


class ComposerAttnSqueezeExcite(AttentionAlgorithm):
    """Add Squeeze-and-Excitation after the convolutions of the model, at ``Event.INIT``.

    Public name: :class:`composer_attn.SqueezeExcite`. The Trainer's optimizers are updated
    automatically. Logs ``squeeze_excite/num_layers`` and ``squeeze_excite/num_parameters``.

    Args:
        latent_channels: width of the hidden layer: a count >= 1 or a fraction in (0, 1), or
            ``{pattern: width}``.
        min_channels: attend only sites with at least this many channels; 128 by default, or 1 with
            ``replace``.
        keywords: those of :func:`composer_attn.functional.apply_squeeze_excite`, with the same
            errors; ``fuse`` and ``backend`` as in :class:`composer_attn.Attention`.

    Example:
        >>> from composer_attn import SqueezeExcite
        >>> SqueezeExcite(latent_channels=1 / 16).key
        'squeeze_excite'
    """

    @signed(_Keywords, SqueezeExcitation, *DEFAULTS)
    def __init__(
        self,
        latent_channels: Latent = 64,
        min_channels: int | None = None,
        **keywords: Unpack[_Keywords],
    ):
        own = {"latent_channels": latent_channels, "min_channels": min_channels}
        super().__init__(SqueezeExcitation, **own, **keywords)


SqueezeExcite = ComposerAttnSqueezeExcite
