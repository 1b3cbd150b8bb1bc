"""Models by name: torchvision's, timm's, ours; built for nothing to check their arguments."""

import sys
from dataclasses import replace

import pytest
import torch
import torchvision

from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import find_mistakes, try_components
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.models import MODELS, build_network
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.tasks.table import TASKS
from composer_attn.runs.training.build import build_parts
from tests.families.torchvision_networks import FAMILIES, MEMBERS


def run(**model) -> RunConfig:
    return RunConfig(
        model=model,
        train_dataset={"name": "synthetic", "num_samples": 4, "num_classes": 10, "size": 32},
        optimizer={"name": "sgd", "lr": 0.1},
        batch_size=4,
    )


def mistakes(**model) -> list[str]:
    return [str(m) for m in find_mistakes(run(**model)) or try_components(run(**model))]


def test_every_classification_network_of_torchvision_has_its_name():
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(MODELS)
    assert {"resnet10", "simplified_efficientnet", "timm/resnet50d"} <= set(MODELS)
    assert len(MODELS) == len(set(MODELS)) > 500
    assert "fcn_resnet50" not in MODELS  # segmentation
    assert "resnet50d" not in MODELS  # timm's, without timm/


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=() if n in {f.member for f in FAMILIES.values()} else pytest.mark.slow
        )
        for n in MEMBERS
    ],
)
def test_torchvisions_networks_are_checked_without_their_parameters(name, monkeypatch):
    built = []
    task = replace(CLASSIFICATION, build_model=lambda s: built.append(build_network(s)))
    monkeypatch.setitem(TASKS, "classification", task)
    assert mistakes(name=name, num_classes=10) == []
    assert all(p.is_meta for network in built for p in network.parameters())
    # RegNets cannot be built without values; all others can.
    assert bool(built) != name.startswith("regnet")


@pytest.mark.parametrize(
    "name",
    ["resnet50d", "efficientnet_b0", "convnext_tiny", "regnety_004", "vit_tiny_patch16_224"],
)
def test_timms_networks_are_checked_without_their_parameters(name):
    assert mistakes(name=f"timm/{name}", num_classes=10) == []


def test_a_regnet_builds_although_it_cannot_be_checked_for_nothing():
    network = build_network({"name": "regnet_x_400mf", "num_classes": 10})
    assert network.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_resnet50d_is_timms():
    with torch.device("meta"):
        network = build_network({"name": "timm/resnet50d"})
    assert sum(p.numel() for p in network.parameters()) == 25_576_264
    assert type(network).__module__ == "timm.models.resnet"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"name": "timm/resnet50dd"}, "model.name: unknown model 'timm/resnet50dd'; did you mean"),
        ({"name": "resnet51"}, "model.name: unknown model 'resnet51'; did you mean"),
        ({"name": "resnet18", "num_classes": 1}, "num_classes must be a whole number >= 2; got 1"),
        ({"name": "resnet18", "num_clases": 3}, "model: TypeError: "),
        ({"name": "timm/resnet50d", "num_clases": 3}, "model: TypeError: "),
        ({"name": "resnet10", "num_clases": 3}, "model.num_clases: unknown argument of resnet10"),
        ({"name": "resnet10", "loss": "hinge"}, "one of binary_cross_entropy, cross_entropy; got"),
        ({"name": "googlenet", "aux_logits": True}, "leave out aux_logits"),
    ],
)
def test_mistakes_in_a_model_are_named(model, says):
    (mistake,) = mistakes(**model)
    assert says in mistake
    assert len(mistake.splitlines()) == 1


@pytest.mark.parametrize("name", ["timm/resnet50d", "timm/anything"])
def test_without_timm_its_names_ask_for_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    wanted = (
        "model: ImportError: models named timm/... need timm: pip install 'composer-attn[timm]'"
    )
    assert mistakes(name=name) == [wanted]
    with pytest.raises(ConfigError, match="models named timm/"):
        build_parts(run(name=name))


def test_without_timm_everything_else_is_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert not any(name.startswith("timm/") for name in MODELS)
    assert mistakes(name="resnet10", num_classes=10) == []
    (mistake,) = mistakes(name="resnet_10")
    assert "did you mean 'resnet10'?" in mistake
