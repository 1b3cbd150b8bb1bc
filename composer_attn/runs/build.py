"""From a checked config to the objects that Composer trains with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from composer import Trainer
from composer.models import ComposerModel
from composer.utils import get_device, reproducibility
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.errors import ComposerAttnError, ConfigError
from composer_attn.runs.config import RunConfig
from composer_attn.runs.data import LOADER_ARGUMENTS, build_loader
from composer_attn.runs.mistakes import Mistake
from composer_attn.runs.models import build_model
from composer_attn.runs.optim import attention_group, build_optimizer
from composer_attn.runs.registry import ALGORITHMS, CALLBACKS, DATASET_KIND, LOGGERS, SCHEDULERS


@dataclass(frozen=True)
class Parts:
    """The objects of a run, before the Trainer has changed any of them."""

    model: ComposerModel
    optimizer: Optimizer
    train_loader: DataLoader
    eval_loader: DataLoader | None
    scheduler: Any
    algorithms: list[Any]
    callbacks: list[Any]
    loggers: list[Any]


def build_parts(config: RunConfig) -> Parts:
    """Build what a config names.

    Raises:
        ConfigError: a component refused its arguments; the message names the section.
    """
    reproducibility.seed_all(config.seed)  # the same parameters for the same seed
    with _at("model"):
        model = build_model(config.model)
    with _at("optimizer"):
        optimizer = build_optimizer(model, config.optimizer)
        group = attention_group(config.optimizer)
    return Parts(
        model=model,
        optimizer=optimizer,
        train_loader=_loader("train_dataset", config, train=True),
        eval_loader=_loader("eval_dataset", config, train=False) if config.eval_dataset else None,
        scheduler=_scheduler(config),
        algorithms=_algorithms(config, group),
        callbacks=_all("callbacks", CALLBACKS.table, config.callbacks),
        loggers=_all("loggers", LOGGERS.table, config.loggers),
    )


def build_trainer(config: RunConfig, parts: Parts, save_folder: str) -> Trainer:
    """Build the Trainer, which performs the surgeries.

    Raises:
        ConfigError: Composer refused an argument.
        ComposerAttnError: a surgery did not work out.
    """
    try:
        return _trainer(config, parts, save_folder)
    except ComposerAttnError:
        raise
    except (TypeError, ValueError) as error:
        message = f"Composer refused the run: {type(error).__name__}: {error}"
        raise ConfigError(Mistake("", message)) from error


def _trainer(config: RunConfig, parts: Parts, save_folder: str) -> Trainer:
    return Trainer(
        model=parts.model,
        optimizers=parts.optimizer,
        train_dataloader=parts.train_loader,
        eval_dataloader=parts.eval_loader,
        schedulers=parts.scheduler,
        algorithms=parts.algorithms,
        callbacks=parts.callbacks,
        loggers=parts.loggers,
        run_name=config.run_name,
        seed=config.seed,
        max_duration=config.max_duration,
        eval_interval=config.eval_interval,
        precision=config.precision,
        device=get_device(config.device),
        device_train_microbatch_size=config.device_train_microbatch_size,
        compile_config={} if config.compile else None,
        save_folder=save_folder,
        save_interval=config.save_interval,
        save_num_checkpoints_to_keep=config.save_num_checkpoints_to_keep,
        autoresume=config.autoresume,
        load_path=config.load_path,
        load_weights_only=config.load_weights_only,
        dist_timeout=config.dist_timeout,
        # Off: it would log objects' reprs; the config is saved beside the summary instead.
        auto_log_hparams=False,
    )


@contextmanager
def _at(key: str) -> Iterator[None]:
    """Turn whatever a component raises over its arguments into a config's mistake at a key."""
    try:
        yield
    except ConfigError:
        raise
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(Mistake(key, f"{type(error).__name__}: {error}")) from error


def _loader(key: str, config: RunConfig, train: bool) -> DataLoader:
    section = dict(getattr(config, key))
    options = {name: section.pop(name) for name in LOADER_ARGUMENTS if name in section}
    with _at(key):
        dataset = DATASET_KIND.table[section.pop("name")](**section)
        return build_loader(dataset, config.batch_size, train=train, seed=config.seed, **options)


def _scheduler(config: RunConfig) -> Any:
    if config.scheduler is None:
        return None
    arguments = dict(config.scheduler)
    with _at("scheduler"):
        return SCHEDULERS.table[arguments.pop("name")](**arguments)


def _all(key: str, table: Any, sections: dict[str, Any]) -> list[Any]:
    built = []
    for name, arguments in sections.items():
        with _at(f"{key}.{name}"):
            built.append(table[name](**(arguments or {})))
    return built


def _algorithms(config: RunConfig, group: int | None) -> list[Any]:
    """Build the algorithms, ours last: surgeries that rebuild convolutions run before them."""
    algorithms = _all("algorithms", ALGORITHMS.table, config.algorithms)
    for algorithm in algorithms:
        if isinstance(algorithm, AttentionAlgorithm) and algorithm.param_group is None:
            algorithm.param_group = group
    return sorted(algorithms, key=lambda algorithm: isinstance(algorithm, AttentionAlgorithm))
