"""Image classification: one class for each image."""

from pathlib import Path

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import DATASETS
from composer_attn.runs.models.build import (
    MODEL_ARGUMENTS,
    build_model,
    num_classes_of,
    with_num_classes,
)
from composer_attn.runs.models.table import MODELS
from composer_attn.runs.models.weights import arguments_by_weights, check_published, is_file
from composer_attn.runs.tasks.headline import Headline
from composer_attn.runs.tasks.task import Section, Task


def check_weights(section: Section) -> None:
    """Check that the weights of a model section exist.

    Raises:
        ArgumentError: there is no such file, or torchvision publishes none of this name.
    """
    weights = section.get("weights")
    if is_file(weights) and not Path(weights).is_file():
        raise ArgumentError(f"there is no file {weights!r}")
    if weights is not None and not is_file(weights):
        check_published(section["name"], weights)


CLASSIFICATION = Task(
    name="classification",
    headline=Headline("accuracy", "accuracy", of_images=True),
    models=MODELS,
    model_arguments=MODEL_ARGUMENTS,
    datasets=DATASETS,
    build_model=build_model,
    check_weights=check_weights,
    num_classes_of=num_classes_of,
    with_num_classes=with_num_classes,
    arguments_by_weights=arguments_by_weights,
)
