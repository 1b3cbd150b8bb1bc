"""Maps against the closed form of a network with global pooling, and fused against unfused."""

import copy
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from composer.models import ComposerClassifier, ComposerModel
from torch import nn
from torchvision.models import efficientnet_b0, mobilenet_v3_small, resnet18

from composer_attn import apply_eca, apply_squeeze_excite, fuse_attention, heat_maps
from composer_attn.errors import ArgumentError, MissingExtraError, ModelError
from composer_attn.runs.models.efficientnet import efficientnet
from tests.fusion.own_networks import randomized
from tests.snapshots import of_model

CLASSES = 7


def network(build=resnet18, attend=None, **options) -> nn.Module:
    """A network in float64, in evaluation, with random norms and with attention."""
    torch.manual_seed(3)
    model = randomized(build(num_classes=CLASSES)).double().eval()
    if attend is not None:
        attend(model, **options)
    return model


def images(count: int = 1, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64)


def by_formula(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """CAM of a ResNet: before global pooling, a class's output is linear in the feature map."""
    trunk = nn.Sequential(*list(model.children())[:-2])
    with torch.no_grad():
        maps = torch.einsum("ck,khw->chw", model.fc.weight, trunk(x)[0]).relu()
    maps = F.interpolate(maps[:, None], x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("attend", [None, apply_squeeze_excite, apply_eca])
def test_maps_of_a_resnet_are_its_class_activation_maps(attend):
    model, x = network(attend=attend), images(1, 128)
    found = heat_maps(model, x.expand(CLASSES, -1, -1, -1), range(CLASSES))
    assert found.layer == "layer4"
    assert found.targets.tolist() == list(range(CLASSES))
    assert found.maps.shape == (CLASSES, 128, 128)
    assert found.maps.min() == 0
    # Of a class that nothing speaks for, the map is empty.
    largest = found.maps.amax((1, 2)).tolist()
    assert set(largest) <= {0, 1}
    assert sum(largest) >= 2
    torch.testing.assert_close(found.maps, by_formula(model, x), rtol=0, atol=1e-12)


# Convolutions, norms, activations, attentions and blocks whose outputs are computed jointly.
RESNET = [None, "layer2.0.bn1", "layer3.1.conv2"]
MORE = ["conv1", "layer3.1.bn2", "layer2.1.relu"]
MOBILENET = [None, "features.4.block.1.1", "features.4.block.1.2", "features.4.block.2"]
EFFICIENTNET = [None, "features.3.0.block.1.1", "features.3.0.block.1.2", "features.5.1"]
SCALED = partial(efficientnet, phi=-0.5)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("build", "attend", "options", "layers"),
    [
        pytest.param(resnet18, apply_squeeze_excite, {}, RESNET, id="resnet18, SE"),
        pytest.param(resnet18, apply_eca, {}, RESNET, id="resnet18, ECA"),
        pytest.param(resnet18, apply_eca, {}, MORE, id="resnet18, ECA, more layers", marks=SLOW),
        pytest.param(
            resnet18, apply_eca, {"placement": "residual"}, [*RESNET, *MORE],
            id="resnet18, ECA in branches", marks=SLOW,
        ),
        pytest.param(mobilenet_v3_small, None, {}, MOBILENET, id="mobilenet_v3_small, its own"),
        pytest.param(
            efficientnet_b0, None, {}, EFFICIENTNET, id="efficientnet_b0, its own", marks=SLOW
        ),
        pytest.param(
            efficientnet_b0, apply_eca, {"replace": True}, EFFICIENTNET,
            id="efficientnet_b0, ECA instead", marks=SLOW,
        ),
        pytest.param(SCALED, None, {}, EFFICIENTNET, id="EfficientNet, phi -0.5", marks=SLOW),
    ],
)  # fmt: skip
def test_fused_networks_have_the_maps_of_unfused_ones(build, attend, options, layers):
    model, x = network(build, attend, **options), images(1).expand(3, -1, -1, -1)
    fused = copy.deepcopy(model)
    assert len(fuse_attention(fused, norms=True).fused) > 5
    nonzero = 0
    for layer in layers:
        expected, found = (heat_maps(each, x, [0, 2, 4], layer) for each in (model, fused))
        assert found.layer == expected.layer == (layer or expected.layer)
        torch.testing.assert_close(found.maps, expected.maps, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-10)
        nonzero += int(expected.maps.amax((1, 2)).sum())
    assert nonzero >= len(layers), "empty maps are equal in any case"


def test_predictions_and_probabilities_are_the_networks_own():
    model, x = network(attend=apply_eca), images(3)
    found = heat_maps(model, x)
    with torch.no_grad():
        logits = model(x)
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.probabilities, logits.softmax(1), rtol=0, atol=1e-12)
    assert found.predictions.tolist() == found.targets.tolist() == logits.argmax(1).tolist()
    each = heat_maps(model, x, [0, 5, 3])
    assert each.targets.tolist() == [0, 5, 3]
    assert each.predictions.tolist() == found.predictions.tolist()
    torch.testing.assert_close(each.maps[1], heat_maps(model, x, 5).maps[1])
    torch.testing.assert_close(each.maps, heat_maps(model, x, torch.tensor([0, 5, 3])).maps)
    assert not each.maps.requires_grad
    assert not each.logits.requires_grad


@pytest.mark.parametrize(
    ("size", "layer"), [(32, "layer2"), (64, "layer3"), (96, "layer3"), (128, "layer4")]
)
def test_the_layer_is_the_last_with_a_map_that_can_tell_places_apart(size, layer):
    assert heat_maps(network().float(), torch.randn(1, 3, size, size)).layer == layer


def test_where_all_maps_are_small_it_is_the_last_of_the_largest():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    assert heat_maps(model, torch.randn(1, 3, 5, 5)).layer == "1"


class Pair(ComposerModel):
    """A user's own ComposerModel, whose forward takes a batch."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch):
        images, labels = batch
        assert labels.shape == images.shape[:1]
        return self.network(images)

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1])


def test_composer_models_have_the_maps_of_their_networks():
    model, x = network(attend=apply_eca), images()
    expected = heat_maps(model, x)
    classifier = heat_maps(ComposerClassifier(model, num_classes=CLASSES), x)
    assert classifier.layer == expected.layer == "layer3"
    assert torch.equal(classifier.maps, expected.maps)
    own = heat_maps(Pair(model), x)
    assert own.layer == "network.layer3"
    assert torch.equal(own.maps, expected.maps)
    named = heat_maps(ComposerClassifier(model, num_classes=CLASSES), x, layer="module.layer2")
    assert named.layer == "layer2"
    assert torch.equal(named.maps, heat_maps(model, x, layer="layer2").maps)


@pytest.mark.parametrize("fused", [False, True])
def test_no_trace_is_left_whatever_the_model_s_state(fused):
    model, x = network(attend=apply_eca), images()
    expected = heat_maps(model, x).maps
    if fused:
        fuse_attention(model, backend="reference")
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = of_model(model)
    torch.testing.assert_close(heat_maps(model, x).maps, expected, rtol=0, atol=1e-10)
    for wrong in ({"layer": "fc"}, {"layer": "nix"}, {"targets": CLASSES}):
        with pytest.raises(ArgumentError):
            heat_maps(model, x, **wrong)
    with pytest.raises(ArgumentError):
        heat_maps(model, x[:, :2])
    assert of_model(model) == before
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["fc.weight"]
    assert torch.equal(grads["fc.weight"], torch.ones_like(model.fc.weight))
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("fused", [False, True])
def test_frozen_networks_and_disabled_gradients_make_no_difference(fused):
    model, x = network(attend=apply_eca), images()
    expected = heat_maps(model, x).maps
    if fused:
        fuse_attention(model, backend="reference")
    model.requires_grad_(False)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            found = heat_maps(model, x.clone()).maps  # under inference mode an inference tensor
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        assert not found.requires_grad


def test_a_layer_followed_by_an_activation_in_place_keeps_its_own_numbers():
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), *head)
    apart = copy.deepcopy(model)
    apart[1].inplace = False
    x = torch.randn(2, 3, 9, 9)
    for layer in ("0", "1"):
        found, expected = (heat_maps(each, x, 1, layer).maps for each in (model, apart))
        assert torch.equal(found, expected)
        assert found.max() == 1


def test_a_compiled_network_is_run_as_it_is_written():
    model, x = network(), images(1)
    expected = heat_maps(model, x)
    found = heat_maps(torch.compile(model), x)
    assert torch.equal(found.maps, expected.maps)


class Branches(nn.Module):
    """A network with a layer that its output does not depend on, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.used, self.ignored = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.idle, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        y = self.used(x)
        self.ignored(x)
        return self.head(y.mean((2, 3)))


X = torch.randn(2, 3, 8, 8)
TINY = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: heat_maps(m, X, layer="usd"), ArgumentError, "'usd'; did you mean 'used'?"),
        (lambda m: heat_maps(m, X, layer=""), ArgumentError, "unknown layer ''. Valid: head, idle"),
        (lambda m: heat_maps(m, X, layer=4), ArgumentError, "unknown layer 4. Valid: head, idle"),
        (lambda m: heat_maps(m, X, layer="head"), ArgumentError, "'head' outputs (2, 5), not a f"),
        (lambda m: heat_maps(m, X, layer="idle"), ArgumentError, "'idle' is not called in the net"),
        (lambda m: heat_maps(m, X, layer="ignored"), ArgumentError, "does not depend on it"),
        (lambda m: heat_maps(m, X, [1]), ArgumentError, "one for each of the 2 images; got 1"),
        (lambda m: heat_maps(m, X, 5), ArgumentError, "targets must be a whole number <= 4; got 5"),
        (lambda m: heat_maps(m, X, [0, -1]), ArgumentError, "a whole number >= 0; got -1"),
        (lambda m: heat_maps(m, X, [0, 1.5]), ArgumentError, "targets must be a whole number >= 0"),
        (lambda m: heat_maps(m, X, "cat"), ArgumentError, "targets must be one class, or one for"),
        (lambda m: heat_maps(m, X[0]), ArgumentError, "got (3, 8, 8); for one image, pass image[N"),
        (lambda m: heat_maps(m, X[:0]), ArgumentError, "empty dimensions; got (0, 3, 8, 8)"),
        (lambda m: heat_maps(m, X.tolist()), ArgumentError, "must be a tensor (N, channels, H, W)"),
        (lambda m: heat_maps(m, X.byte()), ArgumentError, "must be floating point, normalized as"),
        (lambda m: heat_maps(m, X[:, :2]), ArgumentError, "the network fails on images (2, 2, 8, "),
        (lambda m: heat_maps("resnet18", X), ArgumentError, "model must be a torch.nn.Module; got"),
        (lambda m: heat_maps(m.used, X), ModelError, "must be logits (N, classes), for these imag"),
        (lambda m: heat_maps(TINY, X), ModelError, "no module of the network outputs a feature"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_an_error(call, error, words):
    model = Branches()
    with pytest.raises(error) as raised:
        call(model)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_captum_one_line_names_the_extra(monkeypatch):
    for module in ("captum", "captum.attr"):
        monkeypatch.setitem(sys.modules, module, None)
    model = Branches()
    with pytest.raises(MissingExtraError, match=r"a heat map needs captum: .*-attn\[heatmaps\]'$"):
        heat_maps(model, X)
    assert model.training
