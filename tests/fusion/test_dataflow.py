"""Which sites are fused with what, and why the others are not."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from composer_attn.functional import apply_eca, fuse_attention
from tests.fusion.networks import Net, pair


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class NamedNorm(nn.BatchNorm2d):
    """Computes what every batch norm does."""


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


class Twice(Branching):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Called(Branching):
    def forward(self, x):
        return self.norm(self.conv(self.conv(x)[:, :3]))


class Functional(Branching):
    def forward(self, x):
        return self.norm(torch.tanh(self.conv(x)))


class Moody(Branching):
    def forward(self, x):
        return self.norm(self.conv(x)) if self.training else self.conv(x)


class Returning(Branching):
    def forward(self, x):
        return {"features": self.conv(x)}


class Nested(nn.Module):
    """The norm stands above a branch that ends with the convolution."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), nn.Conv2d(3, 16, 1))})
        self.after = nn.Sequential(nn.BatchNorm2d(16))
        self.drop = nn.Identity()

    def forward(self, x):
        return self.after(self.drop(self.branches["a"](x)))


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return self.norm(self.a(x)) + self.norm(self.b(x))


def followed_by(*modules):
    return nn.Sequential(nn.Conv2d(3, 16, 3), *modules)


def with_instance_forward():
    model = Branching()
    model.forward = lambda x: model.norm(model.conv(x))
    return model


def parametrized():
    norm = nn.BatchNorm2d(16)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
    return followed_by(norm)


def shared():
    conv = nn.Conv2d(16, 16, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(16), conv, nn.BatchNorm2d(16))


NOT_FUSED = {
    "nothing": (followed_by, "its output is the model's"),
    "relu": (lambda: followed_by(nn.ReLU()), "1 (ReLU) follows: not a norm that can be fused"),
    "layer norm": (
        lambda: followed_by(nn.LayerNorm(6)),
        "1 (LayerNorm) follows: not a norm that can be fused",
    ),
    "own forward": (
        lambda: followed_by(OwnNorm(16)),
        "1 (OwnNorm) follows: it overrides forward",
    ),
    "lazy": (
        lambda: followed_by(nn.LazyBatchNorm2d()),
        "1 (LazyBatchNorm2d) follows: not a norm that can be fused",
    ),
    "parametrized": (
        parametrized,
        "1 (ParametrizedBatchNorm2d) follows: its class is extended by a parametrization",
    ),
    "branching": (Branching, "the model cannot be traced: symbolically traced variables cannot be"),
    "twice": (Twice, "its output is used 2 times"),
    "called": (Called, "it is called 2 times"),
    "functional": (Functional, "its output goes to tanh"),
    "moody": (Moody, "its consumer differs between training and evaluation mode"),
    "returning": (Returning, "its output goes to a part of the result"),
    "instance": (with_instance_forward, "the model cannot be traced: its forward was replaced"),
    "shared": (shared, "it is used in several places"),
}


@pytest.mark.parametrize(("build", "reason"), NOT_FUSED.values(), ids=NOT_FUSED)
def test_what_is_not_proved_stays_as_it_is_and_the_plan_says_why(build, reason):
    model = build()
    apply_eca(model, min_channels=16)
    classes = [type(module) for module in model.modules()]
    plan = fuse_attention(model, backend="reference")
    assert plan.fused == ()
    assert plan.alone[0].reason.startswith(reason)
    assert reason in str(plan)
    assert [type(module) for module in model.modules()] == classes


FUSED = {
    "sequence": (lambda: followed_by(nn.BatchNorm2d(16)), "1", ""),
    "named": (lambda: followed_by(NamedNorm(16)), "1", ""),
    "identity": (lambda: followed_by(nn.Identity(), nn.BatchNorm2d(16), nn.ReLU()), "2", "3"),
    "nested": (Nested, "after.0", ""),
    "graph": (lambda: torch.fx.symbolic_trace(followed_by(nn.BatchNorm2d(16))), "1", ""),
    "gelu": (lambda: followed_by(nn.BatchNorm2d(16), nn.GELU()), "1", "2"),
    "softplus": (lambda: followed_by(nn.BatchNorm2d(16), nn.Softplus()), "1", ""),
    "tuple of blocks": (
        lambda: nn.Sequential(followed_by(), nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())),
        "1.0",
        "1.1",
    ),
}


@pytest.mark.parametrize(("build", "norm", "relu"), FUSED.values(), ids=FUSED)
def test_what_is_proved_is_fused(build, norm, relu):
    plain, fused = pair(build, "eca")
    plan = fuse_attention(fused, backend="reference")
    assert [(site.norm, site.activation) for site in plan.sites] == [(norm, relu)]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


def test_a_norm_of_two_convolutions_is_fused_with_the_first():
    plain, fused = pair(SharedNorm, "eca")
    plan = fuse_attention(fused, backend="reference")
    assert [site.fused for site in plan.sites] == [True, False]
    assert plan.alone[0].reason == "norm is fused with a"
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("placement", ["norm", "residual", "identity"])
def test_attended_norms_are_fused_by_themselves(placement):
    model = Net()
    apply_eca(model, min_channels=8, placement=placement)
    plan = fuse_attention(model, backend="reference")
    assert plan.sites
    assert all(site.norm == site.name for site in plan.fused)
    assert len(plan.fused) == len(plan.sites)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_attention_of_an_input_or_a_block_is_computed_alone(placement):
    model = Net()
    apply_eca(model, min_channels=8, placement=placement)
    plan = fuse_attention(model, backend="reference")
    assert len(plan.alone) == len(plan.sites) == 2


def test_resnet_50_is_fused_at_all_46_sites():
    model = torchvision.models.resnet50()
    apply_eca(model)
    plan = fuse_attention(model, backend="reference")
    assert (len(plan.sites), len(plan.fused)) == (46, 46)
    assert str(plan).startswith(
        "backend reference: 46 of 46 sites fused with a norm, 42 with an activation, "
        "16 with an addition"
    )


@pytest.mark.parametrize("squeeze", ["max", "none"])
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_other_squeezes_are_computed_as_ever(squeeze, placement):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)).double()
    apply_eca(model, min_channels=16, placement=placement, squeeze=squeeze)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = copy.deepcopy(model)
    plan = fuse_attention(model, backend="reference")
    assert {site.reason for site in plan.sites} == {f"squeeze={squeeze!r} is not an average"}
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-14)
