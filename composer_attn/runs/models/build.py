"""From a config's model section to a ComposerClassifier."""

from typing import Any

from composer.metrics import CrossEntropy
from composer.models import ComposerClassifier
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from composer_attn.runs.models.table import MODELS


def build_model(section: dict[str, Any]) -> ComposerClassifier:
    """Build the network that a section names, with top-1 (and top-5) accuracy to measure it.

    Args:
        section: ``{name, num_classes, ...}``; the rest are the network's own arguments.

    Raises:
        TypeError, ValueError: the network does not take an argument.
    """
    arguments = {key: value for key, value in section.items() if key != "name"}
    network = MODELS[section["name"]](**arguments)
    num_classes = section.get("num_classes", 1000)
    return ComposerClassifier(
        network,
        num_classes=num_classes,
        train_metrics=MulticlassAccuracy(num_classes=num_classes, average="micro"),
        val_metrics=_metrics(num_classes),
    )


def _metrics(num_classes: int) -> MetricCollection:
    metrics = {
        "accuracy": MulticlassAccuracy(num_classes=num_classes, average="micro"),
        "cross_entropy": CrossEntropy(),
    }
    if num_classes > 5:
        metrics["top5_accuracy"] = MulticlassAccuracy(
            num_classes=num_classes, average="micro", top_k=5
        )
    return MetricCollection(metrics)
