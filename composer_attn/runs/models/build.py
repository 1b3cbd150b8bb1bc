"""Build a ComposerClassifier from the model section of a config."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

from composer.loss import binary_cross_entropy_with_logits, soft_cross_entropy
from composer.metrics import CrossEntropy
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.functional import load_weights
from composer_attn.functional.weights import fill
from composer_attn.runs.models.table import AUXILIARY, MODELS
from composer_attn.runs.models.weights import classes_of, is_file, published_weights

log = logging.getLogger(__name__)

# Arguments of a model section besides the network's own.
MODEL_ARGUMENTS = {"weights": str | None, "loss": str}

# Both take class indices or class probabilities, which MixUp and label smoothing produce.
LOSSES: dict[str, Callable[..., Any]] = {
    "binary_cross_entropy": binary_cross_entropy_with_logits,
    "cross_entropy": soft_cross_entropy,
}


def num_classes_of(section: dict[str, Any]) -> int:
    """Return a network's number of classes: that of the section, or the network's default."""
    parameters = inspect.signature(MODELS[section["name"]]).parameters
    default = parameters["num_classes"].default if "num_classes" in parameters else 1000
    given = section.get("num_classes")
    return default if given is None else given


def with_num_classes(section: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Return a model section with the data's number of classes, if it does not set one.

    With published weights the number of classes that they were trained for is kept.
    """
    weights = section.get("weights")
    if section.get("num_classes") is not None:
        return section
    if weights is not None and not is_file(weights):
        return {name: value for name, value in section.items() if name != "num_classes"}
    return {**section, "num_classes": num_classes}


def build_network(section: dict[str, Any]) -> nn.Module:
    """Build the network of a section, with its weights.

    Args:
        section: ``{name, num_classes, weights, ...}``; ``weights`` is a file, or the name of
            weights published by torchvision; the rest are the network's own arguments. If the
            weights are for a different number of classes, the classifier is not loaded, which is
            logged.

    Raises:
        ArgumentError: the weights are of another network.
        ImportError, OSError, TypeError, ValueError: as raised by the network for its arguments.
    """
    arguments = {k: v for k, v in section.items() if k not in ("name", "loss", "weights")}
    build, weights = MODELS[section["name"]], section.get("weights")
    if weights is None:
        return build(**arguments)
    # Published checkpoints may include auxiliary classifiers, without which networks are built.
    without = tuple(f"{name}." for name in AUXILIARY)
    if is_file(weights):
        network = build(**arguments)
        left = load_weights(network, weights, ignore=without, new_classifier=True)
    elif arguments.get("num_classes") in (None, classes_of(section["name"], weights)):
        return build(**arguments, weights=weights)
    else:
        network, published = build(**arguments), published_weights(section["name"], weights)
        state = published.get_state_dict(progress=False, check_hash=True)
        left = fill(network, state, weights, without, new_classifier=True)
    _tell_of_new(left, weights, arguments.get("num_classes"))
    return network


def _tell_of_new(left: tuple[str, ...], weights: str, num_classes: int | None) -> None:
    new = [name for name in left if not name.startswith(AUXILIARY)]
    if new and dist.get_local_rank() == 0:
        log.warning(
            "the weights of %s are for another number of classes: %s, of %s classes, keep their "
            "initial values",
            weights, ", ".join(new), num_classes,
        )  # fmt: skip


def build_model(section: dict[str, Any]) -> ComposerClassifier:
    """Build the network of a section with a loss, top-1 and top-5 accuracy.

    Raises:
        ArgumentError: there is no such loss, or the weights are of another network.
        ImportError, OSError, TypeError, ValueError: as raised by the network for its arguments.
    """
    loss = section.get("loss", "cross_entropy")
    if loss not in LOSSES:
        raise ArgumentError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
    num_classes = whole_number("num_classes", num_classes_of(section), minimum=2)
    return ComposerClassifier(
        build_network(section),
        num_classes=num_classes,
        train_metrics=MulticlassAccuracy(num_classes=num_classes, average="micro"),
        val_metrics=_metrics(num_classes),
        loss_fn=LOSSES[loss],
    )


def _metrics(num_classes: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes=num_classes, average="micro"),
        "cross_entropy": CrossEntropy(),
    }
    if num_classes > 5:
        metrics["top5_accuracy"] = MulticlassAccuracy(
            num_classes=num_classes, average="micro", top_k=5
        )
    return MetricCollection(metrics)
