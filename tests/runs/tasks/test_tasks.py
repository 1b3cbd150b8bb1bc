"""Tasks: their names in a config, their tables, and the metric that their runs are compared by."""

import pytest
import torch
from torchmetrics import MeanMetric, Metric

from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.tasks.headline import Headline
from composer_attn.runs.tasks.table import TASKS, computed, find_task, headline_named, task_in

CONFIG = """
run_name: small
task: semantic_segmentation
model: {name: lraspp, backbone: resnet10}
train_dataset: {name: shapes_segmentation, split: train, num_samples: 8, size: 32}
optimizer: {name: sgd, lr: 0.01}
batch_size: 4
device: cpu
"""


@pytest.fixture
def config(tmp_path):
    """Return a function that loads the config above with overrides."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return lambda *overrides: load_checked(path, list(overrides))


def test_the_default_is_classification():
    assert RunConfig().task == "classification"
    assert find_task("classification").headline.name == "accuracy"


def test_a_task_has_tables_of_its_own(config):
    assert config().task == "semantic_segmentation"
    for task in TASKS.values():
        assert task.models
        assert task.datasets


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task=segmentation", "task: unknown task 'segmentation'; did you mean"),
        ("task=semantic_segmentatoin", "did you mean 'semantic_segmentation'?"),
        ("task=null", "task: "),
        (
            "model.name=resnet18",
            "resnet18 is a model of task: classification; the task of this run is "
            "semantic_segmentation",
        ),
        ("train_dataset.name=digits", "digits is a dataset of task: classification"),
        ("model.name=lrasp", "unknown model of task semantic_segmentation 'lrasp'; did you mean"),
        ("model.loss=cross_entropy", "unknown argument of lraspp 'loss'"),
        ("model.backbone=resnet19", "model: unknown backbone 'resnet19'; did you mean"),
        ("model.backbone=mobilenet_v2", "backbone must be a ResNet"),
        ("model.output_stride=12", "output_stride must be 8, 16 or 32; got 12"),
        ("model.weights=/none.pt", "there is no file '/none.pt'"),
        ("model.weights_backbone=V9", "weights of resnet10 must be a file; got 'V9'"),
        ("train_dataset.sise=3", "unknown argument of shapes_segmentation 'sise'; did you mean"),
    ],
)
def test_mistakes_name_the_task_and_what_is_valid(config, override, says):
    with pytest.raises(ConfigError) as raised:
        config(override)
    assert says in str(raised.value)


def test_classification_points_to_the_task_of_a_segmentation_network(config):
    with pytest.raises(ConfigError) as raised:
        config("task=classification", "model.backbone=null")
    assert "lraspp is a model of task: semantic_segmentation" in str(raised.value)
    assert "shapes_segmentation is a dataset of task: semantic_segmentation" in str(raised.value)


def test_an_unknown_task_is_reported_once(config):
    with pytest.raises(ConfigError) as raised:
        config("task=x")
    assert [mistake.key for mistake in raised.value.mistakes] == ["task"]


def test_find_task_says_what_is_valid():
    with pytest.raises(ArgumentError, match="unknown task 'x'"):
        find_task("x")


@pytest.mark.parametrize("config", [{}, {"task": None}, {"task": "from the future"}])
def test_a_run_of_no_known_task_is_of_classification(config):
    assert task_in(config).name == "classification"


@pytest.mark.parametrize(
    ("metric", "axis", "written"),
    [
        ("accuracy", "accuracy (%)", "12.50%"),
        ("mean_iou", "mean IoU (%)", "12.50%"),
        ("pixel_accuracy", "pixel accuracy (%)", "12.50%"),
        ("cross_entropy", "cross entropy", "0.1250"),
    ],
)
def test_metrics_are_written_with_their_unit(metric, axis, written):
    headline = headline_named(metric)
    assert (headline.axis, headline.written(0.125)) == (axis, written)


def test_only_accuracy_has_an_interval_of_images():
    assert [t.name for t in TASKS.values() if t.headline.of_images] == ["classification"]
    assert Headline("ap", "AP").title == "AP"
    assert headline_named("mean_iou").title == "Mean IoU"


class Several(Metric):
    """A metric that computes several values, as that of detection does."""

    def update(self) -> None:
        pass

    def compute(self):
        return {"map": torch.tensor(0.5), "classes": torch.tensor([1, 2])}


def test_computed_takes_single_values_apart():
    mean, several = MeanMetric(), Several()
    mean.update(2.0)
    several.update()
    assert computed({"loss": mean, "several": several}) == {"loss": 2.0, "map": 0.5}
