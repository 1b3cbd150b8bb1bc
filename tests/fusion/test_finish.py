"""What follows a norm and is computed with it: additions and ReLUs, as networks write them."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from composer_attn.functional import apply_eca, fuse_attention, unfuse_attention
from composer_attn.surgery.deferred import Deferred
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
    """Two fused norms meet: one of them is computed by itself."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x))


# A block, its addition and its ReLU as the plan names them.
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
    "other relu": (block(lambda self, y, x: F.relu6(y)), "", ""),
    "returned": (block(lambda self, y, x: y), "", ""),
}


@pytest.mark.parametrize("placement", ["conv", "norm"])
@pytest.mark.parametrize(("build", "addition", "relu"), FINISHES.values(), ids=FINISHES)
def test_what_follows_a_norm_is_computed_with_it(build, addition, relu, placement):
    plain, fused = pair(build, "eca", min_channels=16, placement=placement)
    plan = fuse_attention(fused, backend="reference")
    assert (plan.sites[0].addition, plan.sites[0].relu) == (addition, relu)
    assert all(not (site.addition or site.relu) for site in plan.sites[1:])
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


def deferred(until_relu=False):
    """Put off a computation that notes how it was called."""
    calls = []

    def compute(relu, shortcut):
        calls.append((relu, shortcut))
        y = torch.arange(-2.0, 2.0)
        y = y if shortcut is None else y + shortcut
        return y.relu() if relu else y

    return Deferred.of(torch.empty(4), compute, until_relu), calls


ONES = torch.ones(4)


@pytest.mark.parametrize(
    ("use", "expected", "relu", "shortcut"),
    [
        (lambda y: y.relu(), [0, 0, 0, 1], True, False),
        (lambda y: F.relu(y, inplace=True), [0, 0, 0, 1], True, False),
        (lambda y: (y + ONES).relu_(), [0, 0, 1, 2], True, True),
        (lambda y: nn.ReLU()(ONES + y), [0, 0, 1, 2], True, True),
        (lambda y: y.add_(ONES) * 2, [-2, 0, 2, 4], False, True),
        (lambda y: (y + ONES + ONES).relu(), [0, 1, 2, 3], False, True),
        (lambda y: y * 2, [-4, -2, 0, 2], False, False),
        (lambda y: y + 1, [-1, 0, 1, 2], False, False),
        (lambda y: torch.add(y, ONES, alpha=2), [0, 1, 2, 3], False, False),
        (lambda y: y + torch.ones(1), [-1, 0, 1, 2], False, False),
        (lambda y: torch.cat([y, y]), [-2, -1, 0, 1, -2, -1, 0, 1], False, False),
        (lambda y: torch.stack(tensors=[y])[0], [-2, -1, 0, 1], False, False),
        (lambda y: torch.ones(4).add_(y), [-1, 0, 1, 2], False, False),
        (lambda y: torch.tensor(y.tolist()), [-2, -1, 0, 1], False, False),
    ],
)
def test_a_deferred_tensor_takes_in_an_addition_and_a_relu_and_is_itself_for_all_else(
    use, expected, relu, shortcut
):
    y, calls = deferred(until_relu=True)
    found = use(y)
    assert type(found) is torch.Tensor
    assert found.tolist() == expected
    ((rectified, added),) = calls
    assert (rectified, added is ONES) == (relu, shortcut)


def test_without_a_relu_to_come_an_addition_computes():
    y, calls = deferred()
    assert type(y + ONES) is torch.Tensor
    assert calls == [(False, ONES)]


def test_a_deferred_tensor_tells_the_shape_and_dtype_of_its_result():
    y, _ = deferred()
    assert (y.shape, y.dtype, y.dim(), len(y)) == ((4,), torch.float32, 1, 4)
    assert torch.equal(y, torch.arange(-2.0, 2.0))
