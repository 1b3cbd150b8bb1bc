"""Any registered attention as a Composer algorithm."""

from typing import Any, overload

from typing_extensions import Unpack

from composer_attn.algorithms.base import DEFAULTS, AlgorithmKeywords, AttentionAlgorithm
from composer_attn.attention.signatures import signed


class AnyAlgorithm(AlgorithmKeywords, total=False):
    """The keyword arguments of algorithms whose ``min_channels`` is keyword-only."""

    min_channels: int | None


class ComposerAttnAttention(AttentionAlgorithm):
    """Add a registered attention after the convolutions of the model, at ``Event.INIT``.

    Public name: :class:`composer_attn.Attention`. The Trainer's optimizers are updated
    automatically. Logs ``<name>/num_layers`` and ``<name>/num_parameters``. A checkpoint stores the
    name: to resume from it, first import the module that registers the attention.

    Args:
        attention: a registered attention, or its name
            (see :func:`composer_attn.register_attention`).
        arguments: those of :func:`composer_attn.apply_attention` except ``optimizers``, including
            the attention's own, which must be storable in a checkpoint. A ``filter_fn`` is not
            stored, and has to be passed again when resuming. In addition:

            - fuse: whether to fuse attention with the batch norm that it is connected to; see
              :func:`composer_attn.functional.fuse_attention`.
            - backend: ``auto``, ``reference``, ``cpp``, ``inductor`` or ``triton``.

    Raises:
        ArgumentError: there is no attention of that name, or an argument is invalid for any
            model. Errors that depend on the model or the optimizer are raised at ``Event.INIT``.

    Example:
        >>> from composer_attn import Attention
        >>> Attention("squeeze_excite", squeeze="avg+max", min_channels=64).key
        'squeeze_excite'
    """

    @overload
    def __init__(self, attention: Any, **keywords: Unpack[AnyAlgorithm]): ...

    @overload
    def __init__(self, attention: Any, **arguments: Any): ...

    @signed(AnyAlgorithm, *DEFAULTS, free=True)
    def __init__(self, attention: Any, **arguments: Any):
        super().__init__(attention, **arguments)

    def _named_arguments(self) -> list[str]:
        return [repr(self.key), *super()._named_arguments()]
