"""Tables from names to objects, one for each kind of component in a config.

Nothing is imported or evaluated by a name from YAML: names that are not in a table are errors.
"""

import inspect
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints

import composer.algorithms
import composer.callbacks
import composer.optim
import torch
from composer import loggers
from composer.core import Algorithm

from composer_attn.algorithms import FuseAttention
from composer_attn.callbacks import ExcitationMonitor
from composer_attn.errors import ArgumentError
from composer_attn.runs.components.attention_algorithms import COMPOSERS, Attentions
from composer_attn.runs.config.annotations import annotations_of, misfit
from composer_attn.runs.config.config_errors import Mistake, unknown
from composer_attn.runs.config.shorthands import written_out
from composer_attn.runs.data import LOADER_ARGUMENTS, build_loader
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.tasks.table import TASKS
from composer_attn.runs.tasks.task import Task


def _nowhere(name: Any) -> str:
    return ""


@dataclass(frozen=True)
class ComponentKind:
    """A kind of component.

    Attributes:
        label: its name in messages.
        table: builders of the components, by name.
        supplied: arguments supplied by the run, which a config must not set.
        extra: types of the arguments that every component of the kind takes besides its own.
        elsewhere: returns a hint for a name that is not in the table; "" if there is none.
    """

    label: str
    table: Mapping[str, Callable[..., Any]]
    supplied: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: Callable[[Any], str] = _nowhere

    def write_out(self, name: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a component's arguments with ratios like ``1/16`` converted to numbers."""
        if not isinstance(name, str) or name not in self.table:
            return arguments
        try:
            build = self.table[name]
        except ArgumentError:  # reported by check_call
            return arguments
        return written_out(arguments, build, self.extra)

    def check(self, key: str, section: Any) -> list[Mistake]:
        """List the mistakes in a section ``{name: ..., argument: ...}``."""
        if not isinstance(section, Mapping) or "name" not in section:
            valid = ", ".join(sorted(self.table)[:5])
            return [Mistake(key, f"must be {{name: ..., ...}}, the name one of {valid}, ...")]
        arguments = {name: value for name, value in section.items() if name != "name"}
        return self.check_call(key, f"{key}.name", section["name"], arguments)

    def check_all(self, key: str, sections: Any) -> list[Mistake]:
        """List the mistakes in a section ``{name: {argument: ...}, name: ...}``."""
        if not isinstance(sections, Mapping):
            return [Mistake(key, "must be {name: {argument: value}, ...}")]
        mistakes = []
        for name, arguments in sections.items():
            here = f"{key}.{name}"
            if arguments is not None and not isinstance(arguments, Mapping):
                mistakes.append(Mistake(here, f"must be {{argument: value}}; got {arguments!r}"))
            else:
                mistakes += self.check_call(here, here, name, arguments or {})
        return mistakes

    def check_call(
        self, key: str, name_key: str, name: Any, arguments: Mapping[str, Any]
    ) -> list[Mistake]:
        """List the mistakes in a component's name and in the names and types of its arguments."""
        if not isinstance(name, str) or name not in self.table:
            place = self.elsewhere(name) if isinstance(name, str) else ""
            return [Mistake(name_key, place or unknown(self.label, name, self.table))]
        try:
            self.table[name]
        except ArgumentError as error:  # the attention of a package that cannot be imported
            return [Mistake(name_key, str(error))]
        parameters = inspect.signature(self.table[name]).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        valid = [p.name for p in named if p.name not in self.supplied] + list(self.extra)
        mistakes = [
            Mistake(f"{key}.{argument}", unknown(f"argument of {name}", argument, valid))
            for argument in arguments
            if argument in self.supplied or (argument not in valid and not takes_any)
        ]
        missing = [
            p.name for p in named
            if p.default is p.empty and p.name not in arguments and p.name not in self.supplied
        ]  # fmt: skip
        mistakes += [Mistake(key, f"{name} needs the argument {m!r}") for m in missing]
        by_default = {
            p.name for p in named if p.default is None
        }  # even if not annotated as optional
        given = {n: v for n, v in arguments.items() if v is not None or n not in by_default}
        return mistakes + self._check_types(key, name, given)

    def _check_types(self, key: str, name: str, arguments: Mapping[str, Any]) -> list[Mistake]:
        types = annotations_of(self.table[name]) | dict(self.extra)
        return [
            Mistake(f"{key}.{argument}", f"must be {wanted}; got {value!r}")
            for argument, value in arguments.items()
            if (wanted := misfit(value, types.get(argument, Any)))
        ]


def snake_case(name: str) -> str:
    """Convert a class name to its name in YAML: ``LRMonitor`` to ``lr_monitor``."""
    words = name.replace("NaN", "Nan")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words).lower()


def _composer_algorithms() -> dict[str, Callable[..., Algorithm]]:
    """Return Composer's algorithms by class and package name: ``blur_pool`` and ``blurpool``."""
    table: dict[str, Callable[..., Algorithm]] = {}
    for name in composer.algorithms.__all__:
        cls = getattr(composer.algorithms, name)
        if isinstance(cls, type) and issubclass(cls, Algorithm):
            table[snake_case(name)] = cls
            table[cls.__module__.split(".")[2]] = cls
    return table


def _classes(package: Any, ending: str) -> dict[str, Callable[..., Any]]:
    """Return the classes that a package exports, by name in snake case without the ending."""
    return {
        snake_case(name.removesuffix(ending)): getattr(package, name)
        for name in package.__all__
        if name.endswith(ending) and isinstance(getattr(package, name), type)
    }


_OTHERS = {
    **{n: cls for n, cls in _composer_algorithms().items() if n != "squeeze_excite"},
    COMPOSERS: composer.algorithms.SqueezeExcite,
    "fuse_attention": FuseAttention,
}


# Composer's algorithms that change batches of images of one size, or need one label for each.
OF_BATCHES = frozenset(
    {
        "aug_mix", "augmix", "col_out", "colout", "cut_mix", "cutmix", "cut_out", "cutout",
        "label_smoothing", "mix_up", "mixup", "progressive_resizing", "rand_augment",
        "randaugment", "selective_backprop",
    }
)  # fmt: skip


def is_attention(name: str) -> bool:
    """Return whether an algorithm in a config adds attention, including unregistered ones."""
    return name == COMPOSERS or name not in _OTHERS


ALGORITHMS = ComponentKind(
    "algorithm",
    # The cast is safe: the first mapping would only need to be mutable for writing.
    ChainMap(cast(MutableMapping, Attentions(_OTHERS)), _OTHERS),
    supplied=("filter_fn",),  # a function, which YAML cannot express
)

OPTIMIZERS = ComponentKind(
    "optimizer",
    {
        "adadelta": torch.optim.Adadelta,
        "adafactor": torch.optim.Adafactor,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "adamax": torch.optim.Adamax,
        "adamw": torch.optim.AdamW,
        "asgd": torch.optim.ASGD,
        "decoupled_adamw": composer.optim.DecoupledAdamW,
        "decoupled_sgdw": composer.optim.DecoupledSGDW,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "rmsprop": torch.optim.RMSprop,
        "rprop": torch.optim.Rprop,
        "sgd": torch.optim.SGD,
    },
    supplied=("params",),
    extra={"no_decay": list, "groups": dict},
)

SCHEDULERS = ComponentKind(
    "scheduler",
    {n: cls for n, cls in _classes(composer.optim, "Scheduler").items() if n != "composer"},
)

LOGGERS = ComponentKind(
    "logger",
    {
        "file": loggers.FileLogger,
        "mlflow": loggers.MLFlowLogger,
        "tensorboard": loggers.TensorboardLogger,
        "wandb": loggers.WandBLogger,
    },
)

CALLBACKS = ComponentKind(
    "callback", {**_classes(composer.callbacks, ""), "excitation_monitor": ExcitationMonitor}
)

_LOADER_TYPES = get_type_hints(build_loader)
_OF_LOADERS = {name: _LOADER_TYPES[name] for name in LOADER_ARGUMENTS}


def model_kind(task: Task) -> ComponentKind:
    """Return the models of a task."""
    tables = {name: other.models for name, other in TASKS.items()}
    return _of_task(task, "model", tables, task.model_arguments)


def dataset_kind(task: Task) -> ComponentKind:
    """Return the datasets of a task."""
    tables = {name: other.datasets for name, other in TASKS.items()}
    return _of_task(task, "dataset", tables, _OF_LOADERS)


def _of_task(
    task: Task, label: str, tables: Mapping[str, Mapping[str, Any]], extra: Mapping[str, Any]
) -> ComponentKind:
    def elsewhere(name: Any) -> str:
        others = [f"task: {other}" for other, table in tables.items() if name in table]
        place = " or ".join(others)
        return place and f"{name} is a {label} of {place}; the task of this run is {task.name}"

    # Classification, the default, need not be named.
    of = "" if task is CLASSIFICATION else f" of task {task.name}"
    return ComponentKind(f"{label}{of}", tables[task.name], extra=extra, elsewhere=elsewhere)
