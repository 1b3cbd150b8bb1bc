"""Base of the attention algorithms: surgery at INIT, then a check and fusion at AFTER_LOAD."""

import contextlib
import logging
import warnings
from typing import Any, TypedDict

from composer.algorithms.warnings import NoEffectWarning, NotIntendedUseWarning
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import reproducibility
from torch import nn

from composer_attn.algorithms.arguments import (
    is_plain,
    own_defaults,
    plain,
    qualified_name,
    registered_name,
)
from composer_attn.algorithms.ranks import check_plans_agree
from composer_attn.attention.registry import Attention
from composer_attn.checks import whole_number
from composer_attn.errors import (
    ArgumentError,
    AttentionRemovedError,
    ModelError,
    NothingAttendedWarning,
    PatternError,
    PlacementError,
    first_few,
)
from composer_attn.functional import apply_attention, plan_attention
from composer_attn.functional.common import attends_nothing, why_nothing
from composer_attn.functional.keywords import DEFAULTS as SURGERY_DEFAULTS
from composer_attn.functional.keywords import SITES, Filter, Where, split
from composer_attn.fusion import FusionPlan, backends_of, fuse
from composer_attn.ops import check_backend, prepare
from composer_attn.surgery import (
    Selection,
    SurgeryPlan,
    check_model,
    describe_orphans,
    end_guard,
    find_attended,
    leave_to_guard,
)
from composer_attn.surgery.attend import Attends
from composer_attn.surgery.names import unwrapped

log = logging.getLogger(__name__)


class Fused(TypedDict, total=False):
    """Keyword arguments for how the attention of an algorithm is computed."""

    fuse: bool
    backend: str


class AlgorithmKeywords(Where, Fused, total=False):
    """Keyword arguments shared by the algorithms, whose optimizers are the Trainer's."""

    param_group: int | None


class AttentionAlgorithm(Algorithm):
    """Base class of the algorithms: attends the model at ``Event.INIT``.

    Args:
        attention: a registered attention, or its name.
        param_group: see :func:`composer_attn.apply_attention`, also for all arguments not listed.
        filter_fn: see :func:`composer_attn.apply_attention`.
        fuse: whether to fuse attention with the batch norm that it is connected to.
        backend: the backend that computes it.

    Attributes:
        key: the attention's name, under which the algorithm's hyperparameters are logged.
        arguments: the other arguments, as plain values.
        plan: the plan that was applied, set at ``Event.INIT``.
        fusion: the fusion plan, set at ``Event.AFTER_LOAD``; None if nothing was to be fused.

    Raises:
        ArgumentError: an argument is invalid for any model. Errors that depend on the model or
            the optimizer are raised at ``Event.INIT``.
    """

    def __init__(
        self,
        attention: Attention,
        *,
        param_group: int | None = None,
        filter_fn: Filter = None,
        fuse: bool = True,
        backend: str = "auto",
        **arguments: Any,
    ):
        self.key = registered_name(attention)
        sites, trained, own = split(arguments)
        if trained:
            raise ArgumentError("an algorithm takes no optimizers: it updates those of the Trainer")
        # All arguments are stored, so that a checkpoint does not depend on future defaults.
        selection = Selection(**sites)
        written = {name: getattr(selection, name) for name in SITES if name != "filter_fn"}
        own = own_defaults(self.key) | own
        self.param_group = plain(param_group)
        self.filter_fn = filter_fn
        self.arguments = {name: plain(value) for name, value in (own | written).items()}
        self.fuse = fuse
        self.backend = backend
        self.plan: SurgeryPlan | None = None
        self.fusion: FusionPlan | None = None
        self._attended: dict[str, nn.Module] = {}
        self._check_arguments()

    def _check_arguments(self) -> None:
        check_backend(self.backend)
        if not isinstance(self.fuse, bool):
            raise ArgumentError(f"fuse must be True or False; got {self.fuse!r}")
        if self.param_group is not None:
            whole_number("param_group", self.param_group, minimum=0)
        # The name of a function comes from a checkpoint, and is only an error once it is needed.
        filter_fn = None if isinstance(self.filter_fn, str) else self.filter_fn
        # On a model without convolutions, only the arguments themselves can be wrong.
        anything = dict(self.arguments, include=None, exclude=None, filter_fn=filter_fn)
        # It also has no residual blocks, and no site that a pattern could match.
        with contextlib.suppress(PlacementError, PatternError):
            plan_attention(nn.Identity(), self.key, **anything)
        for name, value in split(self.arguments)[2].items():
            if not is_plain(value):
                raise ArgumentError(
                    f"{name} must consist of plain values, which a checkpoint can store: numbers, "
                    f"strings, None, and lists, tuples or dicts of them; got {value!r}"
                )

    def __repr__(self) -> str:
        # Composer stores this in checkpoints, evaluates it, and compares it as text.
        return f"{type(self).__name__}({', '.join(self._named_arguments())})"

    def _named_arguments(self) -> list[str]:
        arguments = dict(
            self.arguments, param_group=self.param_group, fuse=self.fuse, backend=self.backend
        )
        if self.filter_fn is not None:
            arguments["filter_fn"] = qualified_name(self.filter_fn)
        return [f"{name}={value!r}" for name, value in arguments.items()]

    @staticmethod
    def required_on_load() -> bool:
        """Return True: a checkpoint with this algorithm contains its parameters, and needs it."""
        return True

    def match(self, event: Event, state: State) -> bool:
        """Run at ``INIT``, and before and after a checkpoint is loaded."""
        return event in (Event.INIT, Event.BEFORE_LOAD, Event.AFTER_LOAD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Attend the model, or check that the attended modules still are.

        Raises:
            ComposerAttnError: as :func:`composer_attn.apply_attention`; nothing was changed.
            AttentionRemovedError: another algorithm has since dropped attention.
            RanksError: other ranks have attended other sites.
        """
        if event == Event.INIT:
            self._operate(state, logger)
            return
        self._check_kept(state)
        if event == Event.AFTER_LOAD:
            end_guard(self._attended.values())
        # All surgeries are done, including those of a checkpoint; DDP and torch.compile come later.
        if event == Event.AFTER_LOAD and self.fuse:
            self._fuse(state, logger)

    def _operate(self, state: State, logger: Logger) -> None:
        if isinstance(self.filter_fn, str):
            raise ArgumentError(
                f"filter_fn is the function {self.filter_fn}, which a checkpoint cannot store: "
                "pass the algorithm, with that function, to the Trainer that loads the checkpoint"
            )
        # All ranks draw the same parameters, whatever their seeds: FSDP2 does not broadcast them.
        with warnings.catch_warnings(), reproducibility.seed_context(state.rank_zero_seed):
            warnings.simplefilter("ignore", NothingAttendedWarning)
            self.plan = apply_attention(
                state.model,
                self.key,
                **self.arguments,
                filter_fn=self.filter_fn,
                optimizers=state.optimizers,
                param_group=self.param_group if state.optimizers else None,
            )
        check_plans_agree(repr(self), self.plan)
        sites = find_attended(state.model)
        self._attended = {name: module.attention for name, module in sites.items()}
        leave_to_guard(self._attended.values())
        if attends_nothing(self.plan):
            message = f"{self!r} attended nothing: {why_nothing(self.plan)}"
            warnings.warn(message, NoEffectWarning, stacklevel=2)
        self._warn_of_untrained(state)
        log.info("%r:\n%s", self, self.plan)
        logger.log_hyperparameters(
            {
                f"{self.key}/num_layers": len(self.plan.chosen),
                f"{self.key}/num_parameters": self.plan.parameters,
            }
        )

    def sites_in(self, model: nn.Module) -> list[Attends]:
        """List what this kind of algorithm attended."""
        if self.plan is None:  # Event.INIT has not been: nothing is attended
            return []
        attended = set(self._attended.values())
        return [
            site
            for site in find_attended(model).values()
            if site.attention in attended and type(site.attention).__name__ == self.plan.attention
        ]

    def _fuse(self, state: State, logger: Logger) -> None:
        """Fuse what this kind of algorithm attended, and leave the rest as it is."""
        own = self.sites_in(state.model)
        if not own:
            return
        try:
            check_model(state.model)
            backends = backends_of(state.model)
            backends.update(dict.fromkeys(own, self.backend))
            self.fusion = fuse(state.model, backends)
        except ModelError as error:  # sharded, for example: attention is computed unfused
            log.warning("%r fuses nothing: %s", self, error)
            return
        # Build now, not in the first batch, which is timed.
        prepare(self.backend, (p.device for site in own for p in site.attention.parameters()))
        log.info("%r:\n%s", self, self.fusion)
        logger.log_hyperparameters({f"{self.key}/num_fused": len(self.fusion.fused)})

    def _warn_of_untrained(self, state: State) -> None:
        """Warn of attention in no optimizer, from an earlier surgery without ``optimizers=``."""
        groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        lost = [
            unwrapped(name)
            for name, attention in self._attended.items()
            if any(p.requires_grad and id(p) not in held for p in attention.parameters())
        ]
        if groups and lost:
            warnings.warn(
                f"no optimizer holds the attention of {first_few(lost)}: it will not train. It "
                "was added without optimizers= after the optimizer was built",
                NotIntendedUseWarning,
                stacklevel=2,
            )

    def _check_kept(self, state: State) -> None:
        # Not by name: FSDP's activation checkpointing inserts wrappers. Not by module either: a
        # conversion of norms (SyncBatchNorm) transfers their attention.
        orphans = describe_orphans(state.model)
        if orphans:
            raise AttentionRemovedError(orphans)
        kept = {module.attention for module in find_attended(state.model).values()}
        lost = [name for name, attention in self._attended.items() if attention not in kept]
        if lost:
            culprits = _rebuilders(state, lost)
            own = type(self).__name__.removeprefix("ComposerAttn")
            raise AttentionRemovedError(
                f"{culprits} rebuilt {len(lost)} convolutions that {own} attended "
                f"({first_few([unwrapped(name) for name in lost])}), "
                f"and dropped their attention. List {culprits} first: "
                f"algorithms=[{culprits}(...), {own}(...)]"
            )


# The callables that define the defaults of the algorithms' keywords.
DEFAULTS = (AttentionAlgorithm, *SURGERY_DEFAULTS)


def _rebuilders(state: State, lost: list[str]) -> str:
    """Return the names of the algorithms from the replaced modules' packages, or else of all."""
    modules = dict(state.model.named_modules())
    packages = {_package(modules[name]) for name in lost if name in modules}
    others = [other for other in state.algorithms if not isinstance(other, AttentionAlgorithm)]
    known = [other for other in others if _package(other) in packages]
    names = [type(other).__name__ for other in known or others]
    return " and ".join(dict.fromkeys(names)) or "something"


def _package(thing: object) -> str:
    return type(thing).__module__.rpartition(".")[0]
