"""The schema of a run, and its construction from YAML files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from composer_attn.errors import ArgumentError, ConfigError, first_line
from composer_attn.runs.config.config_errors import Mistake, foreign, unknown
from composer_attn.runs.config.interpolation import check_interpolations
from composer_attn.runs.config.shorthands import SEVERAL, named_sections, nothing_below, take_out
from composer_attn.runs.config.yaml_file import read_yaml

_COMMAND_LINE = "command line"
_MOST_BASES = 20


@dataclass
class RunConfig:
    """The complete config of a run. A section is a mapping of ``name`` and arguments.

    Attributes:
        run_name: name of the run for loggers, and of its folder.
        task: ``classification``, or another of :data:`composer_attn.runs.tasks.table.TASKS`.
        variant: name of its variant in comparisons; by default that of its attention.
        seed: seed of all random numbers: parameters, order of the data, augmentation, ...
        model: ``{name: resnet50, num_classes: 1000, ...}``.
        train_dataset: ``{name: digits, split: train, ...}``.
        eval_dataset: like ``train_dataset``; without it nothing is evaluated.
        batch_size: global batch size: samples per optimizer step, over all ranks.
        device_train_microbatch_size: samples per forward and backward pass, or ``auto``.
        train: the parts to train, with all others frozen: ``[attention, classifier]`` and patterns
            of parameter names; everything by default.
        freeze_norms: whether batch norms frozen by ``train`` also keep their running statistics.
        sync_batch_norm: whether batch norms normalize by the batches of all ranks.
        algorithms: ``{eca: {min_channels: 64}, ...}``, in any order.
        optimizer: ``{name: decoupled_sgdw, lr: 0.1, ...}``.
        scheduler: ``{name: cosine_annealing_with_warmup, t_warmup: 5ep, ...}``; constant if null.
        max_duration: a time string of Composer's, such as ``90ep`` or ``1000ba``.
        eval_interval: how often to evaluate; a time string, too.
        precision: ``fp32``, ``amp_bf16``, ``amp_fp16``, ...; by default Composer's for the device.
        device: ``cpu``, ``gpu`` or ``mps``; by default the best available.
        compile: whether to ``torch.compile`` the model.
        parallelism: ``ddp``, or ``fsdp2`` to shard parameters over the ranks.
        loggers: ``{tensorboard: {log_dir: ...}, ...}``.
        callbacks: ``{lr_monitor: {}, ...}``.
        save_folder: folder of checkpoints and summary. If it is not empty, a run that is not
            resumed writes to a new folder beside it instead, with suffix ``-2``, ``-3``, ...
        save_interval: how often to save a checkpoint.
        save_num_checkpoints_to_keep: number of latest checkpoints to keep; -1 keeps all.
        autoresume: whether to resume from the last checkpoint in ``save_folder``, if any.
        load_path: a checkpoint to start from.
        load_weights_only: whether to load only the weights from it.
        dist_timeout: seconds after which a rank that does not respond ends the run.
    """

    run_name: str = "run"
    task: str = "classification"
    variant: str | None = None
    seed: int = 17
    model: dict[str, Any] = field(default_factory=dict)
    train_dataset: dict[str, Any] = field(default_factory=dict)
    eval_dataset: dict[str, Any] | None = None
    batch_size: int = 256
    device_train_microbatch_size: Any = None
    train: list[Any] | None = None
    freeze_norms: bool = False
    sync_batch_norm: bool = False
    algorithms: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None
    max_duration: str = "1ep"
    eval_interval: str = "1ep"
    precision: str | None = None
    device: str | None = None
    compile: bool = False
    parallelism: str = "ddp"
    loggers: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    save_folder: str = "runs/${run_name}"
    save_interval: str = "1ep"
    save_num_checkpoints_to_keep: int = 2
    autoresume: bool = False
    load_path: str | None = None
    load_weights_only: bool = False
    dist_timeout: float = 300.0


KEYS = tuple(f.name for f in fields(RunConfig))
REQUIRED = ("model", "train_dataset", "optimizer")


@dataclass(frozen=True)
class ConfigFile:
    """A config with the layers (files, command line) it was read from, to locate keys.

    Attributes:
        config: the config of the run, with all interpolations resolved.
        layers: pairs of a source's name and its content; later ones take precedence.
        mistakes: keys that are unknown, missing or of the wrong type, absent from ``config``.
    """

    config: RunConfig
    layers: tuple[tuple[str, DictConfig], ...]
    mistakes: tuple[Mistake, ...] = ()

    def source_of(self, key: str) -> str:
        """Return the last source (file or command line) to set a key path or its nearest parent."""
        depths = [_depth(layer, key) for _, layer in self.layers]
        if not any(depths):
            return self.layers[-2][0]  # the file that was given
        deepest_last = max((depth, index) for index, depth in enumerate(depths))
        return self.layers[deepest_last[1]][0]

    def located(self, mistakes: Sequence[Mistake]) -> list[Mistake]:
        """Add to each mistake the file that it is in."""
        return [replace(m, file=m.file or self.source_of(m.key)) for m in mistakes]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigFile:
    """Read a run's YAML file, its ``base`` files, and ``key=value`` overrides.

    ``base: other.yaml`` names a file, relative to this one, whose keys apply unless this one sets
    them; a section with a different ``name`` replaces the base's entirely, and a component that is
    null removes the base's. ``${key}`` and ``${oc.env:NAME}`` are resolved by OmegaConf.

    Raises:
        ConfigError: a file cannot be read, or a ``${...}`` cannot be resolved.
    """
    read = (*_read(Path(path)), (_COMMAND_LINE, _read_overrides(overrides)))
    layers = tuple((source, named_sections(layer)) for source, layer in read)
    mistakes: list[Mistake] = []
    merged = OmegaConf.structured(RunConfig)
    for source, layer in layers:
        for key in layer:
            if key not in KEYS:
                mistakes.append(Mistake(str(key), unknown("key", key, KEYS), source))
                continue
            try:
                if source != _COMMAND_LINE and _names_another(merged[key], layer[key]):
                    merged[key] = {}
                section = OmegaConf.masked_copy(layer, key)
                if key in SEVERAL:
                    section, wrong = take_out(key, merged, layer)
                    mistakes += [replace(mistake, file=source) for mistake in wrong]
                merged = OmegaConf.merge(merged, section)
            except TypeError:  # raised by OmegaConf for a list in place of a mapping
                mistakes.append(Mistake(str(key), "must be a mapping {...}", source))
            except OmegaConfBaseException as error:
                mistakes.append(Mistake(str(key), first_line(error), source))
    mistakes += [
        Mistake(key, "is required, like {name: ...}", str(path))
        for key in REQUIRED
        if not any(key in layer for _, layer in layers)
    ]
    unresolved = _unresolved(merged)
    located = ConfigFile(merged, layers).located([*mistakes, *unresolved])
    if unresolved:
        raise ConfigError(*located)
    config = cast(RunConfig, OmegaConf.to_object(merged))  # merged has the structure of RunConfig
    located += ConfigFile(config, layers).located(_nulls(config))
    return ConfigFile(config, layers, tuple(located))


def _nulls(config: RunConfig) -> list[Mistake]:
    """List the components that are null after resolving ``${...}``."""
    sections = {key: getattr(config, key) for key in SEVERAL}
    return [
        nothing_below(f"{key}.{name}", {n: v for n, v in section.items() if v is not None})
        for key, section in sections.items()
        for name, arguments in section.items()
        if arguments is None
    ]


def _names_another(below: Any, section: Any) -> bool:
    """Return whether a section names a different component than its base files."""
    if not isinstance(below, DictConfig) or not isinstance(section, DictConfig):
        return False
    names = {layer.get("name") for layer in (below, section)} - {None}
    return len(names) > 1


def _depth(layer: DictConfig, key: str) -> int:
    """Return how many parts of a key path a layer sets."""
    node: Any = OmegaConf.to_container(layer, resolve=False)
    for depth, part in enumerate(key.split(".")):
        if not isinstance(node, dict) or part not in node:
            return depth
        node = node[part]
    return len(key.split("."))


def _read(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Read a file and its bases, the innermost base first."""
    try:
        content = OmegaConf.load(io.StringIO(read_yaml(path)))
        base = content.pop("base", None) if isinstance(content, DictConfig) else None
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from None
    except ArgumentError as error:
        raise _error(path, str(error)) from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise _error(path, f"is not plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig):
        raise _error(path, f"must be a mapping of keys to values; valid keys: {', '.join(KEYS)}")
    if base is None:
        return [(str(path), content)]
    base_path = path.parent / str(base)
    if base_path.resolve() in (path.resolve(), *seen):
        raise _error(path, f"base: {base} leads back to a file that builds on it")
    if len(seen) >= _MOST_BASES:
        raise _error(path, f"base: more than {_MOST_BASES} files that build on one another")
    return [*_read(base_path, (*seen, path.resolve())), (str(path), content)]


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    wrong = [text for text in overrides if not text.partition("=")[1] or text.startswith("=")]
    if wrong:
        message = "must be key=value, like optimizer.lr=0.1"
        raise ConfigError(*(Mistake(text, message, _COMMAND_LINE) for text in wrong))
    try:
        return OmegaConf.from_dotlist(list(overrides))
    # OmegaConf also raises built-in exceptions, for keys below a list or a value.
    except Exception as error:
        raise ConfigError(Mistake(" ".join(overrides), foreign(error), _COMMAND_LINE)) from None


def _unresolved(merged: DictConfig) -> list[Mistake]:
    """List the keys whose ``${...}`` cannot be resolved, or that contain ``???``."""
    written = cast(dict[str, Any], OmegaConf.to_container(merged, resolve=False))  # a mapping
    mistakes = check_interpolations(written)
    if mistakes:
        return mistakes
    for key in KEYS:
        try:
            value = merged[key]
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            mistakes.append(Mistake(key, first_line(error)))
    return mistakes


def _error(path: Path, message: str) -> ConfigError:
    return ConfigError(Mistake("", message, str(path)))
