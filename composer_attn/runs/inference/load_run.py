"""Load a trained run: its network, its preprocessing and the names of its classes."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from composer.models import ComposerModel
from torch import Tensor, nn

from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.config.config_errors import Mistake, at
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.data import LOADER_ARGUMENTS
from composer_attn.runs.data.preprocessing import Preprocessing, preprocessing_of
from composer_attn.runs.inference.rebuild import rebuild
from composer_attn.runs.inference.run_folder import RunFolder, open_run
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.tasks.table import find_task
from composer_attn.runs.training.class_names import ClassNames, read_class_names


@dataclass(frozen=True)
class LoadedRun:
    """A trained network and what is needed to use it; unpacks as its first three fields.

    Attributes:
        network: maps preprocessed images ``(N, 3, size, size)`` to logits ``(N, classes)``, or to
            what a network of its task returns; on the CPU, in evaluation mode.
        preprocessing: converts a PIL image to a tensor ``(3, size, size)``, as the run's evaluation
            does; refuses images for other tasks than classification.
        classes: the name of each output.
        model: the same network as a ComposerModel, with its loss and metrics.
        config: the run's config.
        checkpoint: the file of the weights.
    """

    network: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    model: ComposerModel
    config: RunConfig
    checkpoint: Path

    def __iter__(self) -> Iterator[Any]:
        """Yield network, preprocessing and classes."""
        return iter((self.network, self.preprocessing, self.classes))

    def check_classifies(self, what: str) -> None:
        """Check that the run is of image classification.

        Args:
            what: what needs it, for the message.

        Raises:
            ArgumentError: it is of another task.
        """
        if self.config.task != CLASSIFICATION.name:
            raise ArgumentError(
                f"{what} is for runs of task {CLASSIFICATION.name}; {self.config.run_name} is of "
                f"task {self.config.task}, for which load_run, evaluate, predict, study and report "
                "work"
            )

    @property
    def activation(self) -> str:
        """The function from logits to probabilities: ``softmax``, or elementwise ``sigmoid``."""
        binary = self.config.model.get("loss") == "binary_cross_entropy"
        return "sigmoid" if binary else "softmax"

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities ``(N, classes)`` for preprocessed images.

        Raises:
            ArgumentError: the run is of another task than classification.
        """
        self.check_classifies("probabilities")
        with torch.inference_mode():
            return as_probabilities(self.network(images), self.activation)


def load_run(
    folder: str | Path, *, checkpoint: str | Path = "best", overrides: Sequence[str] = ()
) -> LoadedRun:
    """Load a run from the folder that ``composer-attn train`` wrote; nothing in it is executed.

    The network is built from the run's ``config.yaml``, with the same surgery as in training; the
    checkpoint is checked before it is loaded. The training data are not needed. Custom attentions
    must be registered first, by importing the module that does so.

    Args:
        folder: the run's folder, or one of its checkpoints.
        checkpoint: ``best``, the saved checkpoint with the highest accuracy (or what else the runs
            of its task are compared by) in the evaluation at that step, the last one if none was
            evaluated; ``last``; or a file.
        overrides: ``key=value`` for ``eval_dataset``, which determines the preprocessing, such as
            ``eval_dataset.size=256``.

    Returns:
        The run, which unpacks as ``network, preprocessing, classes``.

    Raises:
        ArgumentError: the folder contains no run, or there is no such checkpoint.
        CheckpointError: it is unsafe, incomplete, or of another network; or there is none.
        ConfigError: the config names something unknown, such as an attention not imported.
        MissingExtraError: a library is not installed.

    Warns:
        UserWarning: the names of the classes are unknown, and are replaced by numbers.

    Example:
        Load a run that ``composer-attn train`` wrote::

            network, preprocessing, classes = load_run("runs/photos")
            logits = network(preprocessing(Image.open("cat.jpg"))[None])
            classes[logits.argmax()]
    """
    return load(open_run(folder, checkpoint, overrides))


def load(run: RunFolder) -> LoadedRun:
    """Load a run located by :func:`~composer_attn.runs.inference.run_folder.open_run`."""
    names = _class_names(run)
    task = find_task(run.config.task)
    with at("eval_dataset"):
        preprocessing = _preprocessing(run.config)
    width = task.num_classes_of(task.with_num_classes(run.config.model, names.num_classes))
    model = rebuild(run, width)
    numbers = tuple(str(index) for index in range(width))
    classes = (*names.classes, *numbers[len(names.classes) :])[:width]
    network = cast(nn.Module, model.module)
    return LoadedRun(network, preprocessing, classes, model, run.config, run.checkpoint)


def as_probabilities(logits: Tensor, activation: str) -> Tensor:
    """Convert logits ``(N, classes)`` to probabilities."""
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)


def _preprocessing(config: RunConfig) -> Preprocessing:
    if config.task == CLASSIFICATION.name:
        return preprocessing_of(config.eval_dataset or config.train_dataset)
    return Preprocessing(
        0, 0, 0, (), (), refusal=f"how to prepare an image is not known for task {config.task}"
    )


def _class_names(run: RunFolder) -> ClassNames:
    """Return the classes stored with the run, or else those of its training data."""
    kept = read_class_names(run.folder)
    if kept is not None:
        return kept
    section = {n: v for n, v in run.config.train_dataset.items() if n not in LOADER_ARGUMENTS}
    try:
        with at("train_dataset"):
            source = find_task(run.config.task).datasets[section.pop("name")](**section)
    except ConfigError as error:
        width = run.config.model.get("num_classes")
        if width is None:
            message = f"the number of the network's classes is not known: {error}"
            raise ConfigError(Mistake("model.num_classes", message)) from error
        warnings.warn(f"classes are numbered, as their names are not known ({error})", stacklevel=4)
        return ClassNames(width, ())
    return ClassNames(source.num_classes, source.classes)
