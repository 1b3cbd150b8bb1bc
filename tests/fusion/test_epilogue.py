"""Additions and ReLUs after a norm are fused with it, however networks write them."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from composer_attn.attention import EfficientChannelAttention
from composer_attn.errors import ModelError
from composer_attn.functional import apply_eca, fuse_attention, unfuse_attention
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.ops.backends import reference as passes
from composer_attn.ops.stages import Normalized
from composer_attn.surgery.attend import attend
from tests.fusion.networks import pair
from tests.fusion.test_numbers import assert_equal, gradients


class Branch(nn.Module):
    """A convolution and its norm, to be added to what comes in."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu, self.skip = nn.ReLU(inplace=True), nn.Identity()

    def branch(self, x):
        return self.norm(self.conv(x))


def block(end):
    """Make a block whose forward is ``end(self, y, x)``, ``y`` being the norm's output."""
    return type("Block", (Branch,), {"forward": lambda self, x: end(self, self.branch(x), x)})


def in_place(self, y, x):
    y += x
    return self.relu(y)


def into_the_shortcut(self, y, x):
    x = x * 1
    x += y
    return x


def used_again(self, y, x):
    z = x + y
    return z.relu() * z


class Inverted(nn.Module):
    """The norm stands at the end of a Sequential, the addition above it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x):
        return x + self.conv(x)


class BothSides(Branch):
    """Two fused norms meet in an addition: one of them is computed separately."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x))


# A block, with the names of its addition and ReLU in the plan.
FINISHES = {
    "in place": (block(in_place), "add", "relu"),
    "function": (block(lambda self, y, x: F.relu(x + y)), "add", "relu"),
    "function in place": (block(lambda self, y, x: F.relu(y + x, inplace=True)), "add", "relu"),
    "methods": (block(lambda self, y, x: y.add(x).relu_()), "add", "relu_"),
    "torch": (block(lambda self, y, x: torch.relu(torch.add(x, y))), "add", "relu"),
    "identity": (block(lambda self, y, x: self.relu(self.skip(self.skip(y) + x))), "add", "relu"),
    "no relu": (block(lambda self, y, x: y + x), "add", ""),
    "no addition": (block(lambda self, y, x: F.relu(y)), "", "relu"),
    "used again": (block(used_again), "add", ""),
    "another function": (block(lambda self, y, x: torch.tanh(y + x)), "add", ""),
    "three terms": (block(lambda self, y, x: (y + x + 2 * x).relu()), "add", ""),
    "broadcast": (block(lambda self, y, x: (y + x.mean((2, 3), True)).relu()), "add", "relu"),
    "another dtype": (block(lambda self, y, x: F.relu(y + x.float())), "add", "relu"),
    "inverted": (Inverted, "add", ""),
    "both sides": (BothSides, "add", "relu"),
    # A trace does not tell it from the other order; the call does, and adds by itself.
    "into the shortcut": (block(into_the_shortcut), "add", ""),
    "a number": (block(lambda self, y, x: y + 1), "", ""),
    "to itself": (block(lambda self, y, x: y + y), "", ""),
    "weighted": (block(lambda self, y, x: torch.add(y, x, alpha=2)), "", ""),
    "other relu": (block(lambda self, y, x: F.relu6(y)), "", "relu6"),
    "softplus": (block(lambda self, y, x: F.softplus(y)), "", ""),
    "returned": (block(lambda self, y, x: y), "", ""),
}


@pytest.mark.parametrize("placement", ["conv", "norm"])
@pytest.mark.parametrize(("build", "addition", "relu"), FINISHES.values(), ids=FINISHES)
def test_what_follows_a_norm_is_computed_with_it(build, addition, relu, placement):
    plain, fused = pair(build, "eca", min_channels=16, placement=placement)
    plan = fuse_attention(fused, backend="reference")
    assert (plan.sites[0].addition, plan.sites[0].activation) == (addition, relu)
    assert all(not (site.addition or site.activation) for site in plan.sites[1:])
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64)
    for training in (True, False):
        outputs = []
        for model in (plain, fused):
            own = x.clone().requires_grad_()
            y = model.train(training)(own)
            assert type(y) is torch.Tensor
            y.square().sum().backward()
            outputs.append({"y": y.detach(), "dx": own.grad, **gradients(model)})
        assert_equal(outputs[1], outputs[0])
    assert_equal(fused.state_dict(), plain.state_dict())


class WithoutGradients(Branch):
    def forward(self, x):
        with torch.no_grad():
            y = self.branch(x)
        return self.relu(y + x)


def test_a_branch_without_gradients_gets_none():
    plain, fused = pair(WithoutGradients, "eca", min_channels=16)
    (site,) = fuse_attention(fused, backend="reference").sites
    assert site.addition == "add"
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64, requires_grad=True)
    outputs = [model(x) for model in (plain, fused)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    for y in outputs:
        y.sum().backward()
    assert all(p.grad is None for model in (plain, fused) for p in model.parameters())


def changed_between(self, y, x):
    x = x * 1
    z = y + x
    x.mul_(0.5)
    return F.relu(z) + x


def test_a_shortcut_that_is_changed_after_the_addition_was_added_before():
    plain, fused = pair(block(changed_between), "eca", min_channels=16)
    (site,) = fuse_attention(fused, backend="reference").sites
    assert (site.addition, site.activation) == ("add", "")
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


class ChangesItsInput(nn.Module):
    """Attended after its norm, whose input is changed before its output is used."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        x = x * 1
        y = self.norm(x)
        x.mul_(2)
        return F.relu(y) + self.conv(x)


def test_an_input_that_is_changed_before_the_output_is_used_is_an_error_not_a_wrong_number():
    model = nn.Sequential(ChangesItsInput(), nn.Conv2d(16, 16, 1))
    attend(model[0].norm, EfficientChannelAttention(16))
    (site,) = fuse_attention(model, backend="reference").sites
    assert (site.norm, site.activation) == ("0.norm", "0.relu")
    with torch.no_grad(), pytest.raises(ModelError, match="was changed in place before"):
        model(torch.randn(3, 16, 4, 4))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        return 2 * ctx.saved_tensors[0] * dy


class OwnActivation(nn.Module):
    def forward(self, x):
        return Square.apply(x)


@pytest.mark.parametrize("other", [OwnActivation, nn.Identity, nn.GELU, nn.ReLU6])
@pytest.mark.parametrize("end", [in_place, lambda self, y, x: self.relu(y)])
def test_a_relu_exchanged_after_the_fusion_is_used_as_it_is(other, end):
    plain, fused = pair(block(end), "eca", min_channels=16)
    for model in (plain, fused):
        model.relu = other()
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64)
    outputs = [model(x) for model in (plain, fused)]
    for y in outputs:
        y.sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    assert_equal(gradients(fused), gradients(plain))


def test_the_backward_of_an_addition_and_a_relu_is_one_node():
    plain, fused = pair(block(in_place), "eca", min_channels=16)
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64)
    assert plain(x).grad_fn.name().startswith("Relu")
    assert fused(x).grad_fn.name() == "AttendThenNormalizeBackward"
    unfuse_attention(fused)
    assert fused(x).grad_fn.name().startswith("Relu")


@pytest.mark.parametrize(
    ("network", "additions"),
    [("resnet18", 8), ("mobilenet_v2", 10), ("resnext50_32x4d", 16), ("regnet_x_400mf", 22)],
)
def test_residual_networks_of_torchvision_end_in_fused_additions(network, additions):
    model = torchvision.models.get_model(network)
    apply_eca(model, min_channels=16)
    plan = fuse_attention(model, backend="reference")
    assert sum(bool(site.addition) for site in plan.sites) == additions


ONES = torch.ones(1, 1, 2, 2)


def deferred(until_relu=False):
    """Return a deferred tensor with the values -2, -1, 0, 1: the output of a norm."""
    x = torch.arange(4.0).view(1, 1, 2, 2)
    one = torch.ones(1, 1)
    return Deferred.of(Normalized(x, passes, 0 * one, one, -2 * one), until_relu)


@pytest.mark.parametrize(
    ("use", "expected", "jointly"),
    [
        (lambda y: y.relu(), [0, 0, 0, 1], True),
        (lambda y: F.relu(y, inplace=True), [0, 0, 0, 1], True),
        (lambda y: (y + ONES).relu_(), [0, 0, 1, 2], True),
        (lambda y: nn.ReLU()(ONES + y), [0, 0, 1, 2], True),
        (lambda y: y.add_(ONES) * 2, [-2, 0, 2, 4], False),
        (lambda y: (y + ONES + ONES).relu(), [0, 1, 2, 3], False),
        (lambda y: y * 2, [-4, -2, 0, 2], False),
        (lambda y: y + 1, [-1, 0, 1, 2], False),
        (lambda y: torch.add(y, ONES, alpha=2), [0, 1, 2, 3], False),
        (lambda y: y + torch.ones(1), [-1, 0, 1, 2], False),
        (lambda y: torch.cat([y, y])[0], [-2, -1, 0, 1], False),
        (lambda y: torch.stack(tensors=[y])[0], [-2, -1, 0, 1], False),
        (lambda y: torch.ones(1, 1, 2, 2).add_(y), [-1, 0, 1, 2], False),
        (lambda y: torch.tensor(y.tolist()), [-2, -1, 0, 1], False),
    ],
)
@torch.no_grad()
def test_a_deferred_tensor_takes_in_an_addition_and_a_relu_and_is_itself_for_all_else(
    use, expected, jointly, monkeypatch
):
    y, written = deferred(until_relu=True), []
    affine = passes.affine

    def watched(x, scale, shift, shortcut, relu):
        written.append((shortcut is not None, relu))
        return affine(x, scale, shift, shortcut, relu)

    monkeypatch.setattr(passes, "affine", watched)
    found = use(y)
    assert type(found) is torch.Tensor
    assert found.flatten().tolist() == expected
    assert [relu for _, relu in written] == [jointly]


def test_without_a_relu_to_come_an_addition_computes():
    assert type(deferred() + ONES) is torch.Tensor
    assert type(deferred(until_relu=True) + ONES) is Deferred


def test_a_deferred_tensor_tells_the_shape_and_dtype_of_its_result():
    y = deferred()
    assert (y.shape, y.dtype, y.dim(), len(y)) == ((1, 1, 2, 2), torch.float32, 4, 1)
    assert torch.equal(y.flatten(), torch.arange(-2.0, 2.0))
