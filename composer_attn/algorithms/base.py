"""What the attention algorithms share: operate at INIT, stand guard until training."""

import logging
import warnings
from collections.abc import Callable

from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import reproducibility

from composer_attn.errors import ArgumentError, AttentionRemovedError, NothingAttendedWarning
from composer_attn.functional import attended_modules
from composer_attn.surgery import SurgeryPlan
from composer_attn.surgery.names import unwrapped

log = logging.getLogger(__name__)


class AttentionAlgorithm(Algorithm):
    """Base of the algorithms: apply a function of ours to the model at ``Event.INIT``.

    Attributes:
        key: what the algorithm's hyperparameters are logged under.
        function: the function of :mod:`composer_attn.functional` that does the work.
        plan: what was done, after ``Event.INIT``.
    """

    key: str
    function: Callable[..., SurgeryPlan]

    def __init__(self, param_group: int | None = None, filter_fn=None, **arguments):
        self.param_group = param_group
        self.filter_fn = filter_fn
        self.arguments = arguments
        self.plan: SurgeryPlan | None = None

    def __repr__(self) -> str:
        # Composer evaluates this from checkpoints, and compares it as text.
        arguments = dict(self.arguments, param_group=self.param_group)
        if self.filter_fn is not None:
            arguments["filter_fn"] = _name_of(self.filter_fn)
        text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"{type(self).__name__}({text})"

    @staticmethod
    def required_on_load() -> bool:
        """Say that a checkpoint made with this algorithm needs it: it holds its parameters."""
        return True

    def match(self, event: Event, state: State) -> bool:
        """Run at ``INIT``; look after the attention before and after a checkpoint is loaded."""
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.AFTER_LOAD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Operate on the model, or make sure that what was attended still is.

        Raises:
            ComposerAttnError: whatever the function raises; nothing was changed.
            AttentionRemovedError: another algorithm dropped attention meanwhile.
        """
        if event == Event.INIT:
            self._operate(state, logger)
        elif self.plan is not None:
            self._check_kept(state)

    def _operate(self, state: State, logger: Logger) -> None:
        if isinstance(self.filter_fn, str):
            raise ArgumentError(
                f"filter_fn is the function {self.filter_fn}, which a checkpoint cannot hold: pass "
                "the algorithm, with that function, to the Trainer that loads the checkpoint"
            )
        # Every rank draws the same parameters (FSDP2 does not broadcast them), whatever its seed.
        with warnings.catch_warnings(), reproducibility.seed_context(state.rank_zero_seed):
            warnings.simplefilter("ignore", NothingAttendedWarning)
            self.plan = type(self).function(
                state.model,
                **self.arguments,
                filter_fn=self.filter_fn,
                optimizers=state.optimizers,
                param_group=self.param_group if state.optimizers else None,
            )
        if not self.plan.chosen:
            warnings.warn(f"{self!r} attended nothing\n{self.plan}", NoEffectWarning, stacklevel=2)
        log.info("%r:\n%s", self, self.plan)
        logger.log_hyperparameters(
            {
                f"{self.key}/num_layers": len(self.plan.chosen),
                f"{self.key}/num_parameters": self.plan.parameters,
            }
        )

    def _check_kept(self, state: State) -> None:
        attended = attended_modules(state.model)
        lost = [site.name for site in self.plan.chosen if site.name not in attended]
        if lost:
            culprits = _rebuilders(state, lost)
            raise AttentionRemovedError(
                f"{culprits} rebuilt {len(lost)} convolutions that {type(self).__name__} attended "
                f"({', '.join(unwrapped(name) for name in lost[:3])}{', ...' * (len(lost) > 3)}), "
                f"and dropped their attention. List {culprits} first: "
                f"algorithms=[{culprits}(...), {type(self).__name__}(...)]"
            )


def _name_of(function) -> str:
    if isinstance(function, str):
        return function
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _rebuilders(state: State, lost: list[str]) -> str:
    """Name the algorithms whose package the replaced modules come from, or else all."""
    modules = dict(state.model.named_modules())
    packages = {_package(modules[name]) for name in lost if name in modules}
    others = [other for other in state.algorithms if not isinstance(other, AttentionAlgorithm)]
    known = [other for other in others if _package(other) in packages]
    names = [type(other).__name__ for other in known or others]
    return " and ".join(dict.fromkeys(names)) or "something"


def _package(thing: object) -> str:
    return type(thing).__module__.rpartition(".")[0]
