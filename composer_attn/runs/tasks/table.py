"""The tasks by name, and the metrics that their runs are compared by."""

from collections.abc import Mapping
from typing import Any

from torchmetrics import Metric

from composer_attn.checks import unknown
from composer_attn.errors import ArgumentError
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.tasks.detection import DETECTION, INSTANCE_SEGMENTATION, KEYPOINTS
from composer_attn.runs.tasks.headline import Headline
from composer_attn.runs.tasks.semantic_segmentation import SEMANTIC_SEGMENTATION
from composer_attn.runs.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        CLASSIFICATION,
        DETECTION,
        INSTANCE_SEGMENTATION,
        KEYPOINTS,
        SEMANTIC_SEGMENTATION,
    )
}


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ArgumentError: there is none.

    Example:
        >>> find_task("classification").headline.name
        'accuracy'
    """
    if name not in TASKS:
        raise ArgumentError(unknown("task", name, TASKS))
    return TASKS[name]


def task_in(config: Mapping[str, Any]) -> Task:
    """Return the task of a config as read from a run's folder; an unknown one is classification.

    Runs of earlier versions, which had classification alone, do not name theirs.
    """
    return TASKS.get(str(config.get("task")), CLASSIFICATION)


def headline_named(metric: str) -> Headline:
    """Return how a metric is written, which may be that of a task, or any other.

    Example:
        >>> headline_named("top5_accuracy").axis
        'top5 accuracy (%)'
    """
    known = {task.headline.name: task.headline for task in TASKS.values()}
    other = Headline(metric, metric.replace("_", " "), percent=metric.endswith("accuracy"))
    return known.get(metric, other)


def computed(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return the values of metrics by name; one that computes several has each under its own name.

    Example:
        >>> import torch
        >>> from torchmetrics import MeanMetric
        >>> metric = MeanMetric()
        >>> metric.update(torch.tensor([1.0, 3.0]))
        >>> computed({"loss": metric})
        {'loss': 2.0}
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        if isinstance(value, Mapping):
            values |= {key: float(each) for key, each in value.items() if each.numel() == 1}
        else:
            values[name] = float(value)
    return values
