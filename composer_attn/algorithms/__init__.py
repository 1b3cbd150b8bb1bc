"""The attentions as Composer algorithms. The lowest layer that imports Composer."""

from composer_attn.extras import naming_the_extra

with naming_the_extra("a Composer algorithm", "composer"):
    from composer_attn.algorithms.attention import ComposerAttnAttention
    from composer_attn.algorithms.eca import ECA, ComposerAttnECA
    from composer_attn.algorithms.registration import register
    from composer_attn.algorithms.squeeze_excite import ComposerAttnSqueezeExcite, SqueezeExcite

register(ComposerAttnAttention, ComposerAttnSqueezeExcite, ComposerAttnECA)

Attention = ComposerAttnAttention

__all__ = [
    "ECA",
    "Attention",
    "ComposerAttnAttention",
    "ComposerAttnECA",
    "ComposerAttnSqueezeExcite",
    "SqueezeExcite",
]
