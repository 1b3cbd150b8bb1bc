"""Efficient Channel Attention as a Composer algorithm."""

from collections.abc import Mapping

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.functional import apply_eca, plan_eca
from composer_attn.functional.common import Filter, Patterns


class ComposerAttnECA(AttentionAlgorithm):
    """Add Efficient Channel Attention after the convolutions of the model, at ``Event.INIT``.

    Known to users as :class:`composer_attn.ECA`. The arguments, and what is raised for bad ones,
    are those of :func:`composer_attn.functional.apply_eca`; the Trainer's optimizers follow by
    themselves. Logs ``eca/num_layers`` and ``eca/num_parameters``.

    Args:
        kernel_size: odd number of weights; ``None`` is the paper's adaptive rule;
            ``{pattern: size}`` where it differs by stage.
        min_channels: attend where there are at least this many channels; 128 by default, and with
            ``replace`` 1.
        gamma: divisor of the adaptive rule.
        b: summand of the adaptive rule.
        placement: ``conv``, ``norm``, ``residual``, ``pre``, ``post`` or ``identity``.
        replace: put attention where the network has its own, which gives way.
        include: glob pattern(s) of module names to attend; all by default.
        exclude: glob pattern(s) of module names to pass over.
        filter_fn: ``filter_fn(name, module) -> bool``. A checkpoint cannot hold it: pass the
            algorithm again when resuming.
        start: ``paper`` or ``identity``.
        gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.
        squeeze: ``avg``, ``max`` or ``none``.
        param_group: index of the one parameter group that all new parameters join.
        fuse: whether attention is computed jointly with the batch norm that it is joined to; see
            :func:`composer_attn.functional.fuse_attention`.
        backend: what computes it: ``auto``, ``reference``, ``cpp``, ``inductor`` or ``triton``.

    Example:
        >>> from composer_attn import ECA
        >>> ECA(kernel_size=3).key
        'eca'
    """

    key = "eca"
    function = staticmethod(apply_eca)
    plan_function = staticmethod(plan_eca)

    def __init__(
        self,
        kernel_size: int | Mapping[str, int] | None = None,
        min_channels: int | None = None,
        *,
        placement: str = "conv",
        replace: bool = False,
        gamma: float = 2,
        b: float = 1,
        include: Patterns = None,
        exclude: Patterns = None,
        filter_fn: Filter = None,
        start: str = "paper",
        gate: str = "sigmoid",
        squeeze: str = "avg",
        param_group: int | None = None,
        fuse: bool = True,
        backend: str = "auto",
    ):
        super().__init__(
            kernel_size=kernel_size,
            min_channels=min_channels,
            placement=placement,
            replace=replace,
            gamma=gamma,
            b=b,
            include=include,
            exclude=exclude,
            filter_fn=filter_fn,
            start=start,
            gate=gate,
            squeeze=squeeze,
            param_group=param_group,
            fuse=fuse,
            backend=backend,
        )


ECA = ComposerAttnECA
