"""The operations on feature maps that channel attention consists of. Requires only torch."""

from composer_attn.ops.backends.table import BACKENDS, check_backend, prepare, prepare_excited
from composer_attn.ops.fused import attend, attend_then_normalize, normalize_then_attend
from composer_attn.ops.fused_activation import (
    activate_attend,
    normalize_activate,
    normalize_activate_attend,
)
from composer_attn.ops.squeeze_and_scale import (
    channel_deviations,
    channel_maxima,
    channel_means,
    channel_vectors,
    scale_channels,
    scale_vectors,
)

__all__ = [
    "BACKENDS",
    "activate_attend",
    "attend",
    "attend_then_normalize",
    "channel_deviations",
    "channel_maxima",
    "channel_means",
    "channel_vectors",
    "check_backend",
    "normalize_activate",
    "normalize_activate_attend",
    "normalize_then_attend",
    "prepare",
    "prepare_excited",
    "scale_channels",
    "scale_vectors",
]
