"""EfficientNets scaled by a coefficient: B0 to B7 to the digit, and images that follow."""

import pytest
import torch
import torchvision
from torch import nn

from composer_attn import EfficientChannelAttention
from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.models.efficientnet import PUBLISHED, compound_scale, efficientnet

# Of 1000 classes; the images' sizes as published.
PARAMETERS = {
    "efficientnet_b0": (5_288_548, 224),
    "efficientnet_b1": (7_794_184, 240),
    "efficientnet_b2": (9_109_994, 260),
    "efficientnet_b3": (12_233_232, 300),
    "efficientnet_b4": (19_341_616, 380),
    "efficientnet_b5": (30_389_784, 456),
    "efficientnet_b6": (43_040_704, 528),
    "efficientnet_b7": (66_347_960, 600),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_factors_give_the_published_networks(name):
    depth, width, resolution = PUBLISHED[name]
    with torch.device("meta"):
        network = efficientnet(depth=depth, width=width, resolution=resolution)
        published = torchvision.models.get_model(name)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in published.state_dict().items()
    }
    found = sum(p.numel() for p in network.parameters()), network.image_size
    assert found == PARAMETERS[name]


def test_b0_computes_what_torchvisions_does():
    network, published = efficientnet(num_classes=7).eval(), torchvision.models.efficientnet_b0(
        num_classes=7
    ).eval()  # fmt: skip
    published.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), published(x))


def test_one_coefficient_scales_all_three_dimensions():
    assert compound_scale(phi=0) == (1, 1, 1)
    assert compound_scale(phi=2) == pytest.approx((1.44, 1.21, 1.3225))
    # Explicitly, instead of derived from the coefficient.
    assert compound_scale(phi=2, width=1) == pytest.approx((1.44, 1, 1.3225))
    depth, width, resolution = compound_scale(phi=1)
    assert depth * width**2 * resolution**2 == pytest.approx(1.92, abs=0.01)


def test_attention_is_what_is_asked_for():
    with torch.device("meta"):
        networks = {kind: efficientnet(attention=kind) for kind in ("se", "eca", "none")}
    counts = {kind: sum(p.numel() for p in n.parameters()) for kind, n in networks.items()}
    assert counts == {"se": 5_288_548, "eca": 4_652_084, "none": 4_652_008}
    found = [m for m in networks["eca"].modules() if isinstance(m, EfficientChannelAttention)]
    assert len(found) == 16
    assert not any("attention" in type(m).__name__.lower() for m in networks["none"].modules())
    assert networks["eca"](torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


def test_dropout_grows_with_the_coefficient_unless_it_is_given():
    def dropout(**given) -> float:
        with torch.device("meta"):
            network = efficientnet(**given)
        return next(m.p for m in network.modules() if isinstance(m, nn.Dropout))

    assert dropout() == 0.2
    assert dropout(phi=4) == pytest.approx(0.4)
    assert dropout(phi=6) == 0.5
    assert dropout(phi=6, dropout=0.1) == 0.1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"phi": 50}, "depth of phi=50 must be from 0.05 to 8 times that of B0"),
        ({"phi": 1e9}, "depth of phi=1e.09 must be from 0.05 to 8"),
        ({"phi": -1e9}, "depth of phi=-1e.09 must be from 0.05 to 8"),
        ({"phi": float("nan")}, "phi must be a finite number; got nan"),
        ({"width": 0}, "width must be from 0.05 to 8"),
        ({"resolution": 6}, "resolution must be from 0.05 to 5"),
        ({"depth": "2"}, "depth must be a finite number; got '2'"),
        ({"dropout": 1}, "dropout must be at least 0 and less than 1; got 1"),
        ({"attention": "see"}, "unknown attention 'see'"),
    ],
)
def test_unreasonable_sizes_are_refused(given, says):
    with pytest.raises(ArgumentError, match=says):
        efficientnet(**given)


CONFIG = """
run_name: scaled
model: {{name: {model}}}
train_dataset: {{name: {dataset}}}
optimizer: {{name: sgd, lr: 0.1}}
batch_size: 4
max_duration: 1ep
"""


def size(tmp_path, model: str, dataset: str = "synthetic, num_samples: 4, num_classes: 10"):
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(model=model, dataset=dataset))
    section = load_checked(file).train_dataset
    return section.get("size"), section.get("resize")


def test_the_images_of_a_run_follow_unless_their_size_is_given(tmp_path):
    folder = "image_folder, root: /data, augmentation: center_crop"
    assert size(tmp_path, "efficientnet, phi: 1.5") == (276, None)
    assert size(tmp_path, "efficientnet, phi: 1.5", folder) == (276, 316)
    assert size(tmp_path, "efficientnet_b3", folder) == (300, 343)
    assert size(tmp_path, "efficientnet, resolution: 2", "digits, split: train") == (64, None)
    assert size(tmp_path, "efficientnet, phi: 1.5", f"{folder}, size: 96") == (96, None)
    assert size(tmp_path, "resnet10", folder) == (None, None)


def test_a_config_of_an_unreasonable_network_says_so(tmp_path):
    with pytest.raises(ConfigError, match="model: depth of phi=99 must be from"):
        size(tmp_path, "efficientnet, phi: 99")
