"""What a run needs to know of its task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from composer.models import ComposerModel
from torch import nn

from composer_attn.runs.data.source import Source
from composer_attn.runs.tasks.headline import Headline

# Arguments of a model section that fill a network, which can be built without them.
WEIGHTS = ("weights", "pretrained", "weights_backbone")

# The model section of a config: ``{name, num_classes, weights, ...}``.
Section = Mapping[str, Any]
# An evaluation image, what is true of it and what was predicted, by name.
Example = dict[str, np.ndarray]


def no_arguments(section: Section) -> dict[str, Any]:
    """Return the arguments that weights set by themselves, where they set none."""
    return {}


def no_check(model: ComposerModel, source: Source) -> None:
    """Accept any data: nothing but the number of classes has to agree."""


@dataclass(frozen=True)
class Task:
    """A task: what its models and datasets are called, and how a run's model is built.

    Batches are made and split as the dataset's :class:`~composer_attn.runs.data.source.Source`
    says.

    Attributes:
        name: its name in a config.
        headline: the metric that its runs are compared by.
        models: the builders of its networks, by name.
        model_arguments: types of the arguments of a model section besides the network's own.
        datasets: the functions that return its data, by name.
        build_model: builds the ComposerModel of a model section, whose network is its ``module``.
            Without the arguments in :data:`WEIGHTS` nothing is read, and the meta device will do.
        check_weights: raises an ArgumentError if the weights of a model section do not exist,
            without reading or downloading them.
        num_classes_of: returns the number of classes of a model section.
        with_num_classes: returns a model section with the data's number of classes, unless it sets
            one, by itself or by its weights.
        arguments_by_weights: returns the network's arguments that the weights of a section set, for
            building it without them.
        examples_of: returns the examples in a batch, from the batch and the outputs, for the page
            that compares runs; ``None`` if the task has none.
        check_data: raises an ArgumentError if a model cannot be trained or evaluated on data, for
            other reasons than their classes.
    """

    name: str
    headline: Headline
    models: Mapping[str, Callable[..., nn.Module]]
    model_arguments: Mapping[str, Any]
    datasets: Mapping[str, Callable[..., Source]]
    build_model: Callable[[dict[str, Any]], ComposerModel]
    check_weights: Callable[[Section], None]
    num_classes_of: Callable[[dict[str, Any]], int]
    with_num_classes: Callable[[dict[str, Any], int], dict[str, Any]]
    arguments_by_weights: Callable[[Section], dict[str, Any]] = no_arguments
    examples_of: Callable[[Any, Any], list[Example]] | None = None
    check_data: Callable[[ComposerModel, Source], None] = no_check
