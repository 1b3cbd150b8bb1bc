"""Weights from a file: plain checkpoints load, also under attention; anything else is refused."""

import pickle

import pytest
import timm
import torch
import torchvision

from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import try_components
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.models import build_network
from composer_attn.runs.training.build import build_parts, build_trainer

PLAIN = {
    "shufflenet_v2_x0_5": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
    "timm/test_resnet": lambda: timm.create_model("test_resnet", num_classes=10),
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def run(name: str, weights, **changes) -> RunConfig:
    return RunConfig(
        model={"name": name, "num_classes": 10, "weights": weights},
        train_dataset={"name": "synthetic", "num_samples": 4, "num_classes": 10, "size": 32},
        optimizer={"name": "sgd", "lr": 0.1},
        batch_size=4,
        device="cpu",
        **changes,
    )


@pytest.fixture(params=PLAIN)
def plain(request):
    """Return a name, and a network of that name whose weights and statistics are its own."""
    network = PLAIN[request.param]()
    network.train()(IMAGES)
    return request.param, network.eval()


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "pack",
    [
        dict,
        prefixed,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": prefixed(state), "optimizer": {}},
        lambda state: {"model_ema": state},
    ],
    ids=["plain", "module.", "state_dict", "model with module.", "model_ema"],
)
def test_a_plain_checkpoint_gives_the_outputs_of_the_network_it_is_of(plain, pack, tmp_path):
    name, network = plain
    file = tmp_path / "plain.pth"
    torch.save(pack(network.state_dict()), file)
    loaded = build_network({"name": name, "num_classes": 10, "weights": str(file)})
    assert torch.equal(loaded.eval()(IMAGES), network(IMAGES))


def test_a_plain_checkpoint_loads_into_the_network_that_is_then_attended(plain, tmp_path):
    name, network = plain
    file = tmp_path / "plain.pth"
    torch.save(network.state_dict(), file)
    algorithms = {"eca": {"min_channels": 32, "start": "identity"}}
    config = run(name, str(file), algorithms=algorithms)
    parts = build_parts(config)
    trainer = build_trainer(config, parts, save_folder=None)
    attended = parts.model.module
    added = set(attended.state_dict()) - set(network.state_dict())
    assert added
    assert all("attention" in key for key in added)
    # Within rounding: a Trainer fuses attention with the batch norms.
    torch.testing.assert_close(attended.eval()(IMAGES), network(IMAGES), rtol=1e-5, atol=1e-6)
    trainer.close()


@pytest.mark.parametrize(
    ("name", "side", "auxiliary"), [("googlenet", 32, "aux1."), ("inception_v3", 80, "AuxLogits.")]
)
def test_a_checkpoint_with_auxiliary_classifiers_loads_into_the_network_without(
    name, side, auxiliary, tmp_path
):
    network = torchvision.models.get_model(name, num_classes=10, init_weights=False)
    assert any(key.startswith(auxiliary) for key in network.state_dict())
    file = tmp_path / "plain.pth"
    torch.save(network.state_dict(), file)
    loaded = build_network({"name": name, "num_classes": 10, "weights": str(file)})
    images = torch.randn(2, 3, side, side)
    assert torch.equal(loaded.eval()(images), network.eval()(images))
    assert loaded.train()(images).shape == (2, 10)


class Attack:
    """What a hostile file holds: a call that its unpickling makes."""

    def __reduce__(self):
        return open, ("attacked", "w")


def truncated(file):
    torch.save(PLAIN["timm/test_resnet"]().state_dict(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BAD_FILES = {
    "of another network": (
        lambda file: torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), file),
        r"holds weights of a different network: .* and \d+ more",
    ),
    "of other classes, but for the bias": (
        lambda file: torch.save(
            timm.create_model("test_resnet", num_classes=3).state_dict()
            | {"fc.bias": torch.zeros(10)},
            file,
        ),
        r"holds weights of a different network: "
        r"fc\.weight is \(3, 96\), the model's is \(10, 96\)$",
    ),
    "one tensor missing": (
        lambda file: torch.save(
            {k: v for k, v in PLAIN["timm/test_resnet"]().state_dict().items() if k != "fc.bias"},
            file,
        ),
        r"holds weights of a different network: fc\.bias is missing$",
    ),
    "one tensor too many": (
        lambda file: torch.save(
            PLAIN["timm/test_resnet"]().state_dict() | {"extra": torch.zeros(1)}, file
        ),
        r"holds weights of a different network: extra is not in the model$",
    ),
    "truncated": (truncated, "is not a checkpoint, or is incomplete"),
    "empty": (lambda file: file.touch(), "holds no readable weights: "),
    "text": (lambda file: file.write_text("weights"), "holds no readable weights$"),
    "that runs code": (
        lambda file: torch.save({"state_dict": Attack()}, file),
        r"is not safe to load: it refers to _?io\.open$",
    ),
    "a bare pickle that runs code": (
        lambda file: file.write_bytes(pickle.dumps(Attack())),
        "is not safe to load: ",
    ),
    "no tensors": (lambda file: torch.save({"lr": 0.1}, file), "holds no state dict"),
    "a tensor": (lambda file: torch.save(torch.zeros(1), file), "holds no state dict"),
}


@pytest.mark.parametrize(("write", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_are_not_the_networks_weights(write, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bad.pth"
    write(file)
    with pytest.raises(ConfigError, match=f"^model: bad.pth {says}") as caught:
        build_parts(run("timm/test_resnet", "bad.pth"))
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]  # nothing was run


# The names of their classifiers, which squeezenet has as a convolution.
CLASSIFIERS = {
    "resnet18": "fc",
    "squeezenet1_1": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "timm/test_resnet": "fc",
}


@pytest.mark.parametrize(("name", "classifier"), CLASSIFIERS.items())
def test_weights_of_other_classes_load_except_for_the_classifier(
    name, classifier, tmp_path, caplog
):
    file = tmp_path / "weights.pth"
    others = build_network({"name": name, "num_classes": 7})
    torch.save(others.state_dict(), file)
    network = build_network({"name": name, "num_classes": 10, "weights": str(file)})
    state, expected = network.state_dict(), others.state_dict()
    new = [key for key in state if key.startswith(f"{classifier}.")]
    assert [len(state[key]) for key in new] == [10, 10]
    assert all(torch.equal(state[key], expected[key]) for key in state if key not in new)
    assert f"{', '.join(new)}, of 10 classes, keep their initial values" in caplog.text


def test_published_weights_go_into_a_network_of_other_classes(monkeypatch, caplog):
    published = torchvision.models.resnet18()
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights,
        "get_state_dict",
        lambda *_, **__: published.state_dict(),
    )
    section = {"name": "resnet18", "num_classes": 37, "weights": "ResNet18_Weights.DEFAULT"}
    network = build_network(section)
    assert torch.equal(network.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert network.fc.weight.shape == (37, 512)
    assert "ResNet18_Weights.DEFAULT are for another number of classes: fc.weight" in caplog.text


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("resnet18", "absent.pth", "model: there is no file 'absent.pth'"),
        ("resnet18", "IMAGENET1K_V2", "one of a file, DEFAULT, IMAGENET1K_V1; got 'IMAGENET1K_V2'"),
        ("resnet10", "DEFAULT", "weights of resnet10 must be a file; got 'DEFAULT'"),
        ("timm/test_resnet", "DEFAULT", "must be a file; pretrained: true; got 'DEFAULT'"),
    ],
)
def test_weights_that_are_not_there_are_mistakes_before_anything_is_built(name, weights, says):
    (mistake,) = try_components(run(name, weights))
    assert says in str(mistake)


@pytest.mark.parametrize("weights", [None, "DEFAULT", "ResNet50_Weights.IMAGENET1K_V2"])
def test_names_of_published_weights_are_valid(weights):
    config = run("resnet50", weights)
    assert try_components(config) == []


def test_published_weights_come_from_torchvision(monkeypatch):
    published = torchvision.models.resnet18()
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights,
        "get_state_dict",
        lambda *_, **__: published.state_dict(),
    )
    network = build_network({"name": "resnet18", "weights": "IMAGENET1K_V1"})
    assert torch.equal(network.eval()(IMAGES), published.eval()(IMAGES))
