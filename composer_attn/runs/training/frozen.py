"""Train only some parts of a network, and freeze the rest."""

from collections.abc import Sequence

from composer.core import Callback, State
from composer.loggers import Logger
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.runs.components.parts import parameters_of


class TrainOnly(Callback):
    """Freezes every parameter outside the given parts of a network.

    This happens after surgery, so that attention can be one of the parts, and before the model is
    wrapped for distributed training, which must know which parameters have gradients.

    Args:
        parts: see :func:`~composer_attn.runs.components.parts.parameters_of`.
        freeze_norms: whether batch norms whose parameters are all frozen also keep their running
            statistics, and normalize by them.
    """

    def __init__(self, parts: Sequence[str], freeze_norms: bool = False):
        self.parts, self.freeze_norms = tuple(parts), freeze_norms
        self._norms: list[nn.Module] = []

    def before_load(self, state: State, logger: Logger) -> None:
        """Freeze the parameters.

        Raises:
            PatternError, ArgumentError: a part does not exist.
        """
        trained = {id(p) for part in self.parts for p in parameters_of(state.model, part)}
        for parameter in state.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        if self.freeze_norms:
            self._norms = [
                module
                for module in state.model.modules()
                if isinstance(module, _BatchNorm)
                and not any(p.requires_grad for p in module.parameters(recurse=False))
            ]

    def before_forward(self, state: State, logger: Logger) -> None:
        """Keep frozen norms in evaluation mode, although each epoch starts in training mode."""
        for norm in self._norms:
            norm.training = False
