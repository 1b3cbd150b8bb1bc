"""The attention in networks of transformers: known, passed over, replaced and removed."""

import pytest
import torch
from torch import nn

from composer_attn.functional import apply_eca, attended_modules, detach_attention, remove_attention
from tests import snapshots
from tests.surgeries import each_surgery

transformers = pytest.importorskip("transformers")


def efficientnet():
    config = transformers.EfficientNetConfig(
        image_size=32,
        width_coefficient=0.5,
        depth_coefficient=0.2,
        hidden_dim=640,
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        kernel_sizes=[3, 3, 5],
        strides=[1, 2, 2],
        num_block_repeats=[1, 1, 2],
        expand_ratios=[1, 6, 6],
        depthwise_padding=[],
        num_labels=10,
    )
    return transformers.EfficientNetForImageClassification(config)


def regnet():
    config = transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1], groups_width=8,
        layer_type="y", num_labels=10,
    )  # fmt: skip
    return transformers.RegNetForImageClassification(config)


# With the class of their attention.
NETWORKS = {
    "efficientnet": (efficientnet, "EfficientNetSqueezeExciteLayer"),
    "regnet": (regnet, "RegNetSELayer"),
}
each_model = pytest.mark.parametrize(("build", "kind"), NETWORKS.values(), ids=NETWORKS)


def randomized(build):
    model, x = build().eval(), torch.randn(2, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
    return model, x


def own(model, kind):
    return {n: m for n, m in model.named_modules() if type(m).__name__ == kind}


def width_of(module):
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d)).in_channels


@each_surgery
@each_model
def test_convolutions_inside_are_passed_over(surgery, build, kind):
    model, x = randomized(build)
    layers = own(model, kind)
    inside = {f"{n}.{c}" for n, m in layers.items() for c, part in m.named_modules()
              if isinstance(part, nn.Conv2d)}  # fmt: skip
    outside = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)} - inside
    plan = surgery.apply(model, min_channels=1)
    assert layers
    assert {site.name for site in plan.passed_over} == inside
    assert set(attended_modules(model)) == outside
    assert all(site.reason.startswith(f"inside {kind} ") for site in plan.passed_over)
    assert model(x).logits.shape == (2, 10)


@each_surgery
@each_model
def test_they_are_replaced_and_restored(surgery, build, kind):
    model, x = randomized(build)
    before, outputs = snapshots.of_model(model), model(x).logits
    widths = {name: width_of(module) for name, module in own(model, kind).items()}
    plan = surgery.apply(model, replace=True, min_channels=1)
    assert {site.name: site.channels for site in plan.chosen} == widths
    assert own(model, kind) == {}
    assert not torch.equal(model(x).logits, outputs)
    detach_attention(model)
    assert snapshots.of_model(model) == before
    assert torch.equal(model(x).logits, outputs)


@each_model
def test_they_can_be_removed(build, kind):
    model, x = randomized(build)
    layers = own(model, kind)
    assert remove_attention(model) == layers
    assert own(model, kind) == {}
    assert model(x).logits.shape == (2, 10)
    assert {type(model.get_submodule(name)) for name in layers} == {nn.Identity}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
        ("ConvNextV2", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
        ("ResNet", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "embedding_size": 8}),
        ("MobileNetV2", {"depth_multiplier": 0.35}),
        (
            "Bit",
            {"hidden_sizes": [32] * 4, "depths": [1] * 4, "embedding_size": 32, "num_groups": 8},
        ),
    ],
)
def test_networks_without_attention_are_attended_whole(name, options):
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")(config)
    plan = apply_eca(model, min_channels=1)
    assert len(plan.chosen) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert plan.passed_over == ()
