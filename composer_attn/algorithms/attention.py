"""Any registered attention as a Composer algorithm."""

from typing import Any, overload

from typing_extensions import Unpack

from composer_attn.algorithms.base import DEFAULTS, AlgorithmKeywords, AttentionAlgorithm
from composer_attn.attention.signatures import signed


class AnyAlgorithm(AlgorithmKeywords, total=False):
    """The keywords of the algorithms, where ``min_channels`` is given by keyword alone."""

    min_channels: int | None


class ComposerAttnAttention(AttentionAlgorithm):
    """Add a registered attention after the convolutions of the model, at ``Event.INIT``.

    Known to users as :class:`composer_attn.Attention`. The Trainer's optimizers follow by
    themselves. Logs ``<name>/num_layers`` and ``<name>/num_parameters``. A checkpoint holds the
    name: whoever resumes from it has imported the module that registers it.

    Args:
        attention: a registered name, or what was registered under one
            (:func:`composer_attn.register_attention`).
        arguments: those of :func:`composer_attn.apply_attention` but for ``optimizers``, the
            attention's own included, as far as they can be written out: a ``filter_fn`` cannot, and
            has to be passed again when resuming. And:

            - fuse: whether attention is computed jointly with the batch norm that it is joined to;
              see :func:`composer_attn.functional.fuse_attention`.
            - backend: what computes it: ``auto``, ``reference``, ``cpp``, ``inductor``, ``triton``.

    Raises:
        ArgumentError: there is no attention of that name, or an argument is wrong for any model.
            What depends on the model or the optimizer is noticed at ``Event.INIT``.

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
