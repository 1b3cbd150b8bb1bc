"""Losses and metrics: against formulas, and together with the algorithms that change targets."""

import pytest
import torch
import torch.nn.functional as F

from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.models import build_model
from composer_attn.runs.models.build import LOSSES
from composer_attn.runs.training.build import build_parts, build_trainer


def model(loss="cross_entropy", num_classes=10):
    return build_model({"name": "timm/test_resnet", "num_classes": num_classes, "loss": loss})


@pytest.fixture
def batch():
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 9, 3])


def by_formula(loss, outputs, targets):
    if loss == "cross_entropy":
        return -(targets * F.log_softmax(outputs, 1)).sum(1).mean()
    # Summed over classes: a mean would be small, and need another learning rate.
    log_p, log_q = F.logsigmoid(outputs), F.logsigmoid(-outputs)
    return -(targets * log_p + (1 - targets) * log_q).sum(1).mean()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_take_class_indices_and_probabilities(loss, batch):
    outputs, labels = torch.randn(4, 10), batch[1]
    one_hot = F.one_hot(labels, 10).float()
    mixed = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)
    found = model(loss)
    expected = by_formula(loss, outputs, one_hot)
    torch.testing.assert_close(found.loss(outputs, (batch[0], labels)), expected)
    torch.testing.assert_close(found.loss(outputs, (batch[0], one_hot)), expected)
    torch.testing.assert_close(
        found.loss(outputs, (batch[0], mixed)), by_formula(loss, outputs, mixed)
    )


def test_the_loss_is_cross_entropy_unless_said_otherwise(batch):
    network = build_model({"name": "timm/test_resnet", "num_classes": 10})
    outputs = network(batch)
    torch.testing.assert_close(network.loss(outputs, batch), F.cross_entropy(outputs, batch[1]))


def test_accuracies_are_of_the_first_and_the_first_five_classes(batch):
    outputs = torch.zeros(4, 10)
    # The true class comes first, second, fifth and sixth.
    for sample, place in enumerate((1, 2, 5, 6)):
        order = [c for c in range(10) if c != batch[1][sample]]
        order.insert(place - 1, int(batch[1][sample]))
        outputs[sample, order] = torch.arange(10, 0, -1).float()
    metrics = model().get_metrics(is_train=False)
    for metric in metrics.values():
        metric.update(outputs, batch[1])
    found = {name: metric.compute().item() for name, metric in metrics.items()}
    expected = F.cross_entropy(outputs, batch[1]).item()
    assert found == {
        "accuracy": 0.25,
        "top5_accuracy": 0.75,
        "cross_entropy": pytest.approx(expected),
    }


def test_five_classes_and_fewer_have_no_top_5():
    assert set(model(num_classes=5).get_metrics(is_train=False)) == {"accuracy", "cross_entropy"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "algorithms",
    [
        {"label_smoothing": {"smoothing": 0.1}},
        {"mixup": {"alpha": 0.2}},
        {"cutmix": {"alpha": 1.0}},
        {"label_smoothing": {"smoothing": 0.1}, "mixup": {"alpha": 0.2}},
    ],
    ids="+".join,
)
def test_algorithms_that_change_targets_train_with_every_loss(algorithms, loss):
    config = RunConfig(
        model={"name": "timm/test_resnet", "num_classes": 10, "loss": loss},
        train_dataset={"name": "synthetic", "num_samples": 8, "num_classes": 10, "size": 32},
        eval_dataset={"name": "synthetic", "num_samples": 4, "num_classes": 10, "size": 32},
        algorithms=algorithms | {"eca": {"min_channels": 32}},
        optimizer={"name": "sgd", "lr": 0.01},
        batch_size=4,
        max_duration="2ba",
        device="cpu",
    )
    parts = build_parts(config)
    trainer = build_trainer(config, parts, save_folder=None)
    before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    trainer.fit()
    assert trainer.state.timestamp.batch == "2ba"
    assert torch.isfinite(trainer.state.loss)
    still = [name for name, p in parts.model.named_parameters() if torch.equal(before[name], p)]
    assert still == []
    trainer.close()
