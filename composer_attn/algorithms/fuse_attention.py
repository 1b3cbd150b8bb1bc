"""Fusing the attention that a network came with, as a Composer algorithm."""

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
    """Compute the attention that a network came with jointly with the norm and activation before.

    Known to users as :class:`composer_attn.FuseAttention`. Nothing about the model changes but how
    it is computed: parameters, names and checkpoints are the same. Attention of ours is fused too
    (unless its own algorithm says ``fuse=False``), in whichever order the algorithms are listed.
    Logs ``fuse_attention/num_fused`` and ``fuse_attention/num_norms``.

    Args:
        backend: as of :func:`composer_attn.fuse_attention`.
        norms: likewise: whether every other batch norm is computed with what follows it, too.

    Attributes:
        fusion: what was fused, after ``Event.AFTER_LOAD``.

    Raises:
        ArgumentError: there is no such backend, or ``norms`` is neither True nor False.

    Example:
        >>> from composer_attn import FuseAttention
        >>> FuseAttention(norms=True)
        ComposerAttnFuseAttention(backend='auto', norms=True)
    """

    key = "fuse_attention"

    def __init__(self, backend: str = "auto", norms: bool = False):
        if not isinstance(norms, bool):
            raise ArgumentError(f"norms must be True or False; got {norms!r}")
        self.backend = check_backend(backend)
        self.norms = norms
        self.fusion: FusionPlan | None = None

    def __repr__(self) -> str:
        # Composer evaluates this from checkpoints, and compares it as text.
        return f"{type(self).__name__}(backend={self.backend!r}, norms={self.norms!r})"

    def match(self, event: Event, state: State) -> bool:
        """Run when every surgery is over, a checkpoint's too; DDP is still to come."""
        return event == Event.AFTER_LOAD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Fuse what there is to fuse."""
        model, ours = state.model, find_attended(state.model)
        others = [each for each in state.algorithms if isinstance(each, AttentionAlgorithm)]
        unwanted = {site for each in others if not each.fuse for site in each.sites_in(model)}
        wanted = [site for site in ours.values() if site not in unwanted]
        try:
            check_model(model)
            backends = dict.fromkeys([*wanted, *find_own(model)], self.backend)
            backends.update({m: how for m, how in backends_of(model).items() if m in wanted})
            self.fusion = fuse(model, backends, self.backend * self.norms)
        except ModelError as error:  # sharded, say: all is computed as ever, only slower
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
