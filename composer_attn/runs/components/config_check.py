"""Check a config before anything is built."""

import zipfile
from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path, PurePath
from typing import Any

import torch
from composer.core import Precision, Time, TimeUnit
from composer.utils import is_tar
from composer.utils.compression import is_compressed_pt
from torch import nn

from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.optim import build_optimizer, build_scheduler, check_groups
from composer_attn.runs.components.parts import as_parts
from composer_attn.runs.components.registry import (
    ALGORITHMS,
    CALLBACKS,
    LOGGERS,
    OF_BATCHES,
    OPTIMIZERS,
    SCHEDULERS,
    ComponentKind,
    dataset_kind,
    model_kind,
)
from composer_attn.runs.config.config_errors import Mistake, at, unknown
from composer_attn.runs.config.parallelism import PARALLELISMS, parallelism_config
from composer_attn.runs.config.schema import ConfigFile, RunConfig, load_config
from composer_attn.runs.models.efficientnet import image_size, scale_of
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.tasks.table import TASKS, find_task
from composer_attn.runs.tasks.task import WEIGHTS

_SEVERAL = {"algorithms": ALGORITHMS, "callbacks": CALLBACKS, "loggers": LOGGERS}
_DURATIONS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE)
_TIMES = ("max_duration", "eval_interval", "save_interval")
_OURS = "excitation_monitor"
_LONGEST_NAME = 40
_DEVICES = ("cpu", "gpu", "mps", "tpu")


def load_checked(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a config and check it completely.

    Raises:
        ConfigError: lists all mistakes, with file, key, what is wrong and what would be valid.
    """
    file: ConfigFile = load_config(path, overrides or ())
    write_out(file.config)
    mistakes = list(file.mistakes)
    faulty = {mistake.key.split(".")[0] for mistake in mistakes}
    found = [m for m in find_mistakes(file.config) if m.key.split(".")[0] not in faulty]
    mistakes += file.located(found)
    mistakes += file.located(try_components(file.config, mistakes))
    if mistakes:
        raise ConfigError(*mistakes)
    return file.config


def single_kinds(config: RunConfig) -> dict[str, ComponentKind]:
    """Return the kinds of the sections that name one component; without those of no task."""
    kinds = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULERS}
    task = TASKS.get(config.task)
    if task is None:
        return kinds
    data = dataset_kind(task)
    return {"model": model_kind(task), "train_dataset": data, "eval_dataset": data, **kinds}


def write_out(config: RunConfig) -> None:
    """Expand the shorthands of a config in place.

    These are numbers like ``1/16``, ``cuda``, and the default image size of a scaled network.
    """
    for key, kind in single_kinds(config).items():
        section = getattr(config, key)
        if isinstance(section, dict):
            setattr(config, key, kind.write_out(section.get("name"), section))
    for key, kind in _SEVERAL.items():
        sections = getattr(config, key)
        for name, arguments in sections.items():
            if isinstance(arguments, dict):
                sections[name] = kind.write_out(name, arguments)
    _follow_resolution(config)
    if config.device == "cuda":  # torch's name for Composer's gpu
        config.device = "gpu"


def _follow_resolution(config: RunConfig) -> None:
    """Set the image size for a scaled network, unless the config sets it."""
    datasets = TASKS[config.task].datasets if config.task in TASKS else {}
    try:
        scale = scale_of(config.model) if isinstance(config.model, dict) else None
    except ArgumentError:  # reported when the model is built
        return
    for section in (config.train_dataset, config.eval_dataset):
        if scale is None or not isinstance(section, dict):
            continue
        if section.get("name") not in datasets or "size" in section:
            continue
        parameters = signature(datasets[section["name"]]).parameters
        for key in ("size", "resize"):
            if key in parameters and key not in section:
                section[key] = image_size(scale, parameters[key].default)


def find_mistakes(config: RunConfig) -> list[Mistake]:
    """List all mistakes in the values of a config."""
    mistakes = _check_name("task", config.task, TASKS)
    for key, kind in single_kinds(config).items():
        if getattr(config, key) is not None:
            mistakes += kind.check(key, getattr(config, key))
    for key, kind in _SEVERAL.items():
        mistakes += kind.check_all(key, getattr(config, key))
    mistakes += _check_batches(config)
    mistakes += [m for key in _TIMES for m in _check_time(key, getattr(config, key))]
    mistakes += _check_name("parallelism", config.parallelism, PARALLELISMS)
    mistakes += _check_name("device", config.device, _DEVICES)
    mistakes += _check_name("precision", config.precision, [p.value for p in Precision])
    mistakes += _check_counts(config)
    mistakes += _check_load_path(config.load_path) + _check_save_folder(config.save_folder)
    mistakes += _check_run_name(config.run_name) + _check_variant(config.variant)
    return mistakes


def try_components(config: RunConfig, known: Sequence[Mistake] = ()) -> list[Mistake]:
    """List the errors of components about their arguments, by building those that are cheap.

    Components with known mistakes are skipped.

    Networks are built on the meta device, optimizers for a single layer. Datasets are not tried, as
    they need their data, nor are loggers and Composer's callbacks, which may open files.
    """
    attempts = {
        "optimizer": lambda: _try_optimizer(config.optimizer),
        "train": lambda: _try_parts(config),
        "parallelism": lambda: parallelism_config(config.parallelism),
        "scheduler": lambda: build_scheduler(config.scheduler),
    }
    if config.task in TASKS:
        attempts["model"] = lambda: _try_model(config)
    for name in config.algorithms:
        attempts[f"algorithms.{name}"] = partial(_try_algorithm, config, name)
    if _OURS in config.callbacks:
        attempts[f"callbacks.{_OURS}"] = partial(_try_callback, config)
    mistakes: list[Any] = []  # the items of a ConfigError
    keys = [mistake.key for mistake in known]
    for key, attempt in attempts.items():
        if any(f"{k}.".startswith(f"{key}.") or f"{key}.".startswith(f"{k}.") for k in keys):
            continue
        try:
            with at(key):
                attempt()
        except ConfigError as error:
            mistakes += error.mistakes
    return mistakes


def _try_optimizer(section: dict[str, Any]) -> None:
    check_groups(section)  # patterns can only be matched on the network itself
    build_optimizer(nn.Linear(1, 1), {k: v for k, v in section.items() if k != "groups"})


def _try_parts(config: RunConfig) -> None:
    if config.train is not None:
        as_parts("train", config.train)
    elif config.freeze_norms:
        raise ArgumentError("freeze_norms: true applies to what train freezes: set train too")


def _try_algorithm(config: RunConfig, name: str) -> None:
    ALGORITHMS.table[name](**(config.algorithms[name] or {}))


def _try_callback(config: RunConfig) -> None:
    CALLBACKS.table[_OURS](**(config.callbacks[_OURS] or {}))


def _try_model(config: RunConfig) -> None:
    task = find_task(config.task)
    task.check_weights(config.model)
    without = {k: v for k, v in config.model.items() if k not in WEIGHTS}
    try:
        with torch.device("meta"):
            task.build_model(without)
    except RuntimeError as error:
        # RegNets compute with tensors in their constructor, after their arguments are checked.
        if "meta tensor" not in str(error):
            raise


def _check_batches(config: RunConfig) -> list[Mistake]:
    """List the algorithms that take batches as classification alone has them."""
    if config.task == CLASSIFICATION.name or not isinstance(config.algorithms, dict):
        return []
    message = f"is for images with one label each, of task: {CLASSIFICATION.name}"
    return [Mistake(f"algorithms.{name}", message) for name in OF_BATCHES & {*config.algorithms}]


def _check_time(key: str, value: str) -> list[Mistake]:
    try:
        time = Time.from_timestring(value)
    except ValueError:
        return [Mistake(key, f"must be a time like 90ep, 1000ba or 0.5dur; got {value!r}")]
    if key == "max_duration" and (time.unit not in _DURATIONS or time.value < 1):
        return [Mistake(key, f"must be a number of ep, ba or sp, like 90ep; got {value!r}")]
    if time.unit not in (*_DURATIONS, TimeUnit.DURATION) or time.value <= 0:
        return [Mistake(key, f"must be more than 0, in ep, ba, sp or dur; got {value!r}")]
    return []


def _check_save_folder(path: str) -> list[Mistake]:
    if "://" in path:
        return [Mistake("save_folder", f"must be a local folder; got {path!r}")]
    return []


def _check_run_name(name: str) -> list[Mistake]:
    # It is part of the paths of loggers and checkpoints.
    parts = PurePath(name).parts
    if not name.strip() or PurePath(name).is_absolute() or ".." in parts or not name.isprintable():
        message = f"must be a relative path without .. (it names the run's folder); got {name!r}"
        return [Mistake("run_name", message)]
    return []


def _check_variant(name: str | None) -> list[Mistake]:
    # It stands in legends and in the headings of tables.
    if name is None or (name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
        return []
    message = f"must be one line of at most {_LONGEST_NAME} characters; got {name!r}"
    return [Mistake("variant", message)]


def _check_name(key: str, value: str | None, valid: Any) -> list[Mistake]:
    return [] if value is None or value in valid else [Mistake(key, unknown(key, value, valid))]


def _check_load_path(path: str | None) -> list[Mistake]:
    if path is not None and (is_tar(path) or is_compressed_pt(path)):
        # Composer would unpack it, to any path it contains, before it can be checked.
        return [Mistake("load_path", f"must be a plain .pt file: unpack {path!r} first")]
    # Composer resolves paths with a scheme such as s3://, and placeholders such as {rank}.
    if path is None or "://" in path or "{" in path:
        return []
    if not Path(path).is_file():
        return [Mistake("load_path", f"there is no file {path!r}")]
    if not zipfile.is_zipfile(path):  # the format of torch.save
        return [Mistake("load_path", f"{path} is not a checkpoint, or is incomplete")]
    return []


def _check_counts(config: RunConfig) -> list[Mistake]:
    limits = {
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "seed": (0 <= config.seed < 2**32, "from 0 to 2**32 - 1"),
        "dist_timeout": (config.dist_timeout > 0, "more than 0 seconds"),
        "save_num_checkpoints_to_keep": (config.save_num_checkpoints_to_keep >= -1, "at least -1"),
    }
    mistakes = [
        Mistake(key, f"must be {valid}; got {getattr(config, key)}")
        for key, (fits, valid) in limits.items()
        if not fits
    ]
    micro = config.device_train_microbatch_size
    whole = isinstance(micro, int) and not isinstance(micro, bool) and micro >= 1
    if micro is not None and micro != "auto" and not whole:
        message = f"must be a whole number >= 1, or auto; got {micro!r}"
        mistakes.append(Mistake("device_train_microbatch_size", message))
    return mistakes
