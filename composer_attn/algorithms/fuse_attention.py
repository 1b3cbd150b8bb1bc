"""Fusion of a network's own attention, as a Composer algorithm."""

import logging
import warnings

from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.errors import ArgumentError, ModelError
from composer_attn.functional.fused import prepare_fused
from composer_attn.fusion import FusionPlan, backends_of, find_own, fuse
from composer_attn.ops import check_backend
from composer_attn.surgery import check_model, find_attended

log = logging.getLogger(__name__)


class ComposerAttnFuseAttention(Algorithm):
    """Fuse a network's own attention with the norm and activation before it.

    Exported as :class:`composer_attn.FuseAttention`. Only the way the model is computed changes:
    parameters, names and checkpoints are the same. Attention added by this package is fused as well
    (unless its own algorithm has ``fuse=False``), in whichever order the algorithms are listed.
    Logs ``fuse_attention/num_fused`` and ``fuse_attention/num_norms``.

    Args:
        backend: see :func:`composer_attn.fuse_attention`.
        norms: whether to fuse every other norm, too, with what follows it.
        recompute: whether convolutions compute fused inputs again in backward instead of keeping
            them.

    Attributes:
        fusion: the fusion plan that was applied; available after ``Event.AFTER_LOAD``.

    Raises:
        ArgumentError: there is no such backend, or ``norms`` or ``recompute`` is not a bool.

    Example:
        >>> from composer_attn import FuseAttention
        >>> FuseAttention(norms=True)
        ComposerAttnFuseAttention(backend='auto', norms=True, recompute=False)
    """

    key = "fuse_attention"

    def __init__(self, backend: str = "auto", norms: bool = False, recompute: bool = False):
        for name, value in (("norms", norms), ("recompute", recompute)):
            if not isinstance(value, bool):
                raise ArgumentError(f"{name} must be True or False; got {value!r}")
        self.backend = check_backend(backend)
        self.norms = norms
        self.recompute = recompute
        self.fusion: FusionPlan | None = None

    def __repr__(self) -> str:
        # Composer evaluates this string from checkpoints, and compares it as text.
        arguments = f"backend={self.backend!r}, norms={self.norms!r}, recompute={self.recompute!r}"
        return f"{type(self).__name__}({arguments})"

    def match(self, event: Event, state: State) -> bool:
        """Run after all surgery, including that of a checkpoint, and before DDP wraps the model."""
        return event == Event.AFTER_LOAD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Fuse the model's attentions."""
        model, ours = state.model, find_attended(state.model)
        others = [each for each in state.algorithms if isinstance(each, AttentionAlgorithm)]
        unwanted = {site for each in others if not each.fuse for site in each.sites_in(model)}
        wanted = [site for site in ours.values() if site not in unwanted]
        try:
            check_model(model)
            backends = dict.fromkeys([*wanted, *find_own(model)], self.backend)
            backends.update({m: how for m, how in backends_of(model).items() if m in wanted})
            self.fusion = fuse(model, backends, self.backend * self.norms, self.recompute)
        except ModelError as error:  # a sharded model, for example: it is computed unfused
            log.warning("%r fuses nothing: %s", self, error)
            return
        if not self.fusion.fused and not self.fusion.norms:
            message = f"{self!r} fused nothing: the model has no attention that can be fused"
            warnings.warn(message, NoEffectWarning, stacklevel=2)
        prepare_fused(model, self.backend, self.fusion)
        log.info("%r:\n%s", self, self.fusion)
        logger.log_hyperparameters(
            {
                f"{self.key}/num_fused": len(self.fusion.fused),
                f"{self.key}/num_norms": len(self.fusion.norms),
            }
        )


FuseAttention = ComposerAttnFuseAttention
