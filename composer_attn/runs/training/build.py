"""Build the objects that Composer trains with from a checked config."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer import Trainer
from composer.algorithms.warnings import NoEffectWarning
from composer.core import DataSpec
from composer.models import ComposerModel
from composer.utils import dist, get_device, reproducibility
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.errors import ComposerAttnError, ConfigError, first_few
from composer_attn.runs.components.optim import attention_group, build_optimizer, build_scheduler
from composer_attn.runs.components.registry import ALGORITHMS, CALLBACKS, LOGGERS
from composer_attn.runs.config.config_errors import Mistake, at, foreign
from composer_attn.runs.config.parallelism import SharedBuffers, parallelism_config
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.data import LOADER_ARGUMENTS, Source, build_loader
from composer_attn.runs.models import synchronize_norms
from composer_attn.runs.tasks.table import find_task
from composer_attn.runs.tasks.task import Task
from composer_attn.runs.training.checkpoint_safety import guarded
from composer_attn.runs.training.checkpoint_saver import LATEST, SafeCheckpointSaver
from composer_attn.runs.training.frozen import TrainOnly
from composer_attn.runs.training.log_files import keep_in_folder
from composer_attn.runs.training.signals import StopRequests
from composer_attn.runs.training.start import (
    AfterSurgery,
    Start,
    WeightsWithoutAttention,
    find_start,
)


@dataclass(frozen=True)
class Parts:
    """The objects of a run, before the Trainer has changed any of them."""

    model: ComposerModel
    optimizer: Optimizer
    train_source: Source
    train_data: DataSpec
    eval_data: DataSpec | None
    scheduler: Any
    algorithms: list[Any]
    callbacks: list[Any]
    loggers: list[Any]
    start: Start
    task: Task


def build_parts(config: RunConfig) -> Parts:
    """Build the objects that a config describes.

    Raises:
        ConfigError: a component refused its arguments; the message names the section.
        CheckpointError: the checkpoint to start from is unsafe or incomplete.
    """
    task, start = find_task(config.task), find_start(config)
    train_source, train_data = _data("train_dataset", config, train=True)
    sources, eval_data = {"train_dataset": train_source}, None
    if config.eval_dataset:
        sources["eval_dataset"], eval_data = _data("eval_dataset", config, train=False)
        _check_classes(*sources.values())
    section = task.with_num_classes(config.model, train_source.num_classes)
    reproducibility.seed_all(config.seed)  # equal seeds give equal initial parameters
    with at("model"):
        model = task.build_model(section)
    _check_labels(sources, task.num_classes_of(section))
    for key, source in sources.items():
        with at(key):
            task.check_data(model, source)
    if config.sync_batch_norm:
        with at("sync_batch_norm"):
            _synchronize(model, config)
    with at("optimizer"):
        optimizer = build_optimizer(model, config.optimizer)
        group = attention_group(config.optimizer)
    with at("scheduler"):
        scheduler = build_scheduler(config.scheduler)
    return Parts(
        model=model,
        optimizer=optimizer,
        train_source=train_source,
        train_data=train_data,
        eval_data=eval_data,
        scheduler=scheduler,
        algorithms=build_algorithms(config, group),
        callbacks=_all("callbacks", CALLBACKS.table, config.callbacks),
        loggers=_all("loggers", LOGGERS.table, config.loggers),
        start=start,
        task=task,
    )


def build_trainer(
    config: RunConfig, parts: Parts, save_folder: str | None, stop: StopRequests | None = None
) -> Trainer:
    """Build the Trainer, which performs the surgeries; without a folder, it saves nothing.

    Raises:
        CheckpointError: the checkpoint to load is unsafe or incomplete.
        ConfigError: Composer refused an argument.
        ComposerAttnError: a surgery failed.
    """
    saver = None
    if save_folder is not None:
        keep_in_folder(parts.loggers, config.loggers, save_folder)
        keep = config.save_num_checkpoints_to_keep
        interval = config.save_interval
        saver = SafeCheckpointSaver(save_folder, interval, keep, stop or StopRequests())
    try:
        with guarded(parts.start.load_path):
            return _trainer(config, parts, saver)
    except ComposerAttnError:
        raise
    except Exception as error:
        # Composer loads the checkpoint here, and raises KeyError: 'state' if the file is not one.
        loading = f", from the checkpoint {config.load_path}" if config.load_path else ""
        message = f"Composer refused the run{loading}: {foreign(error)}"
        raise ConfigError(Mistake("", message)) from error


def _trainer(config: RunConfig, parts: Parts, saver: SafeCheckpointSaver | None) -> Trainer:
    # Before any saver that the config names: Composer resumes from the first one.
    callbacks = [*([saver] if saver else []), *parts.callbacks]
    resumes = config.autoresume and saver is not None
    begun = resumes and saver is not None and Path(saver.folder, LATEST.format(rank=0)).exists()
    if parts.start.weights and not begun:
        callbacks.append(WeightsWithoutAttention(parts.start.weights))
    if hasattr(parts.model, "after_surgery"):
        callbacks.append(AfterSurgery())
    if config.train is not None:
        callbacks.append(TrainOnly(config.train, config.freeze_norms))
    if config.parallelism == "fsdp2":
        callbacks.append(SharedBuffers())
    return Trainer(
        model=parts.model,
        optimizers=parts.optimizer,
        train_dataloader=parts.train_data,
        eval_dataloader=parts.eval_data,
        schedulers=parts.scheduler,
        algorithms=parts.algorithms,
        callbacks=callbacks,
        loggers=parts.loggers,
        run_name=config.run_name,
        seed=config.seed,
        max_duration=config.max_duration,
        eval_interval=config.eval_interval if parts.eval_data else 1,  # avoids a warning
        precision=config.precision,
        device=get_device(config.device),
        device_train_microbatch_size=config.device_train_microbatch_size,
        compile_config={} if config.compile else None,
        parallelism_config=parallelism_config(config.parallelism),
        save_folder=saver.folder if saver else None,
        save_latest_filename=LATEST,
        autoresume=resumes,
        load_path=parts.start.load_path,
        load_weights_only=config.load_weights_only,
        dist_timeout=config.dist_timeout,
        # Disabled, as it would log reprs of objects; the config is saved beside the summary.
        auto_log_hparams=False,
    )


def _data(key: str, config: RunConfig, train: bool) -> tuple[Source, DataSpec]:
    section = dict(getattr(config, key))
    options = {name: section.pop(name) for name in LOADER_ARGUMENTS if name in section}
    with at(key):
        source = find_task(config.task).datasets[section.pop("name")](**section)
        data = build_loader(source, config.batch_size, train=train, seed=config.seed, **options)
    return source, data


def _synchronize(model: ComposerModel, config: RunConfig) -> None:
    """Convert the batch norms if there are several ranks; warn if there are no batch norms."""
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    if not norms and dist.get_local_rank() == 0:
        message = "sync_batch_norm: true has no effect: the model has no batch norm"
        warnings.warn(message, NoEffectWarning, stacklevel=3)
    if dist.get_world_size() > 1:
        synchronize_norms(model, on_cpu=get_device(config.device).name == "cpu")


def _check_labels(sources: dict[str, Source], width: int) -> None:
    """Raise if a label has no network output; warn if the network has outputs to spare."""
    for key, source in sources.items():
        if source.num_classes > width:
            message = (
                f"it has {source.num_classes} classes, but the model has {width}: "
                f"set model.num_classes={source.num_classes}"
            )
            raise ConfigError(Mistake(key, message))
    trained = sources["train_dataset"].num_classes
    if trained < width and dist.get_local_rank() == 0:
        warnings.warn(
            f"the model has {width} classes, but train_dataset has {trained}: {width - trained} "
            f"outputs have no images to learn from. Set model.num_classes={trained}, the default "
            "unless published weights are used",
            stacklevel=3,
        )


def _check_classes(train: Source, evaluation: Source) -> None:
    """Check that every label means the same class in both datasets."""
    differing = sorted(set(train.classes) ^ set(evaluation.classes))
    if train.classes and evaluation.classes and differing:
        message = (
            f"its {len(evaluation.classes)} classes are not the {len(train.classes)} of "
            f"train_dataset; only in one: {first_few(differing)}"
        )
        raise ConfigError(Mistake("eval_dataset", message))


def _all(key: str, table: Any, sections: dict[str, Any]) -> list[Any]:
    built = []
    for name, arguments in sections.items():
        with at(f"{key}.{name}"):
            built.append(table[name](**(arguments or {})))
    return built


def build_algorithms(config: RunConfig, group: int | None) -> list[Any]:
    """Build the algorithms, with attention last, after surgeries that rebuild convolutions."""
    algorithms = _all("algorithms", ALGORITHMS.table, config.algorithms)
    for algorithm in algorithms:
        if isinstance(algorithm, AttentionAlgorithm) and algorithm.param_group is None:
            algorithm.param_group = group
    return sorted(algorithms, key=lambda algorithm: isinstance(algorithm, AttentionAlgorithm))
