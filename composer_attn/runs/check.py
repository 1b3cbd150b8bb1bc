"""Check a config before anything is built."""

from pathlib import Path
from typing import Any

from composer.core import Precision, Time

from composer_attn.errors import ConfigError
from composer_attn.runs.config import ConfigFile, RunConfig, load_config
from composer_attn.runs.mistakes import Mistake, unknown
from composer_attn.runs.registry import (
    ALGORITHMS,
    CALLBACKS,
    DATASET_KIND,
    LOGGERS,
    MODEL_KIND,
    OPTIMIZERS,
    SCHEDULERS,
)

_SINGLE = {
    "model": MODEL_KIND,
    "train_dataset": DATASET_KIND,
    "eval_dataset": DATASET_KIND,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
}
_SEVERAL = {"algorithms": ALGORITHMS, "callbacks": CALLBACKS, "loggers": LOGGERS}
_TIMES = ("max_duration", "eval_interval", "save_interval")
_DEVICES = ("cpu", "gpu", "mps", "tpu")


def load_checked(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a config and check all of it.

    Raises:
        ConfigError: lists every mistake, with file, key, what is wrong and what would be valid.
    """
    file: ConfigFile = load_config(path, overrides or ())
    mistakes = find_mistakes(file.config)
    if mistakes:
        raise ConfigError(*file.located(mistakes))
    return file.config


def find_mistakes(config: RunConfig) -> list[Mistake]:
    """List every mistake in the values of a config."""
    mistakes: list[Mistake] = []
    for key, kind in _SINGLE.items():
        if getattr(config, key) is not None:
            mistakes += kind.check(key, getattr(config, key))
    for key, kind in _SEVERAL.items():
        mistakes += kind.check_all(key, getattr(config, key))
    mistakes += [m for key in _TIMES for m in _check_time(key, getattr(config, key))]
    mistakes += _check_name("device", config.device, _DEVICES)
    mistakes += _check_name("precision", config.precision, [p.value for p in Precision])
    mistakes += _check_counts(config)
    mistakes += _check_load_path(config.load_path)
    return mistakes


def _check_time(key: str, value: str) -> list[Mistake]:
    try:
        Time.from_timestring(value)
    except ValueError:
        return [Mistake(key, f"must be a time like 90ep, 1000ba or 0.5dur; got {value!r}")]
    return []


def _check_name(key: str, value: str | None, valid: Any) -> list[Mistake]:
    return [] if value is None or value in valid else [Mistake(key, unknown(key, value, valid))]


def _check_load_path(path: str | None) -> list[Mistake]:
    # What has a scheme, like s3://, is for Composer to look up; {rank} for it to fill in.
    if path is None or "://" in path or "{" in path or Path(path).is_file():
        return []
    return [Mistake("load_path", f"there is no file {path!r}")]


def _check_counts(config: RunConfig) -> list[Mistake]:
    mistakes = []
    if config.batch_size < 1:
        mistakes.append(Mistake("batch_size", f"must be at least 1; got {config.batch_size}"))
    micro = config.device_train_microbatch_size
    whole = isinstance(micro, int) and not isinstance(micro, bool) and micro >= 1
    if micro is not None and micro != "auto" and not whole:
        message = f"must be a whole number >= 1, or auto; got {micro!r}"
        mistakes.append(Mistake("device_train_microbatch_size", message))
    return mistakes
