"""Squeeze-and-Excitation as a Composer algorithm."""

from collections.abc import Mapping

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.functional import apply_squeeze_excite, plan_squeeze_excite
from composer_attn.functional.common import Filter, Patterns


class ComposerAttnSqueezeExcite(AttentionAlgorithm):
    """Add Squeeze-and-Excitation after the convolutions of the model, at ``Event.INIT``.

    Known to users as :class:`composer_attn.SqueezeExcite`. The arguments, and what is raised for
    bad ones, are those of :func:`composer_attn.functional.apply_squeeze_excite`; the Trainer's
    optimizers follow by themselves. Logs ``squeeze_excite/num_layers`` and
    ``squeeze_excite/num_parameters``.

    Args:
        latent_channels: width of the hidden layer: a count >= 1 or a fraction in (0, 1), or
            ``{pattern: width}``.
        min_channels: attend where there are at least this many channels; 128 by default, and with
            ``replace`` 1.
        placement: ``conv``, ``norm``, ``residual``, ``pre``, ``post`` or ``identity``.
        replace: put attention where the network has its own, which gives way.
        include: glob pattern(s) of module names to attend; all by default.
        exclude: glob pattern(s) of module names to pass over.
        filter_fn: ``filter_fn(name, module) -> bool``. A checkpoint cannot hold it: pass the
            algorithm again when resuming.
        start: ``paper`` or ``identity``.
        gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.
        squeeze: ``avg``, ``max`` or ``none``.
        bias: whether the linear layers have biases.
        param_group: index of the one parameter group that all new parameters join.
        fuse: whether attention is computed jointly with the batch norm that it is joined to; see
            :func:`composer_attn.functional.fuse_attention`.
        backend: what computes it: ``auto``, ``reference``, ``cpp``, ``inductor`` or ``triton``.

    Example:
        >>> from composer_attn import SqueezeExcite
        >>> SqueezeExcite(latent_channels=1 / 16).key
        'squeeze_excite'
    """

    key = "squeeze_excite"
    function = staticmethod(apply_squeeze_excite)
    plan_function = staticmethod(plan_squeeze_excite)

    def __init__(
        self,
        latent_channels: int | float | Mapping[str, int | float] = 64,
        min_channels: int | None = None,
        *,
        placement: str = "conv",
        replace: bool = False,
        include: Patterns = None,
        exclude: Patterns = None,
        filter_fn: Filter = None,
        start: str = "paper",
        gate: str = "sigmoid",
        squeeze: str = "avg",
        bias: bool = False,
        param_group: int | None = None,
        fuse: bool = True,
        backend: str = "auto",
    ):
        super().__init__(
            latent_channels=latent_channels,
            min_channels=min_channels,
            placement=placement,
            replace=replace,
            include=include,
            exclude=exclude,
            filter_fn=filter_fn,
            start=start,
            gate=gate,
            squeeze=squeeze,
            bias=bias,
            param_group=param_group,
            fuse=fuse,
            backend=backend,
        )


SqueezeExcite = ComposerAttnSqueezeExcite
