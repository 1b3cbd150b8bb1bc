"""Examples that do not fit: the messages, and that nothing changes."""

import threading

import pytest
import torch
from torch import nn

from composer_attn.errors import ArgumentError, ModelError
from composer_attn.functional import plan_eca
from tests import snapshots
from tests.networks import NETWORKS

EXPECTED = "Expected: the first convolution, conv1, takes (N, 3, H, W), and its weights are float32"


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (torch.randn(2, 1, 32, 32), "Given: a tensor (2, 1, 32, 32), float32 on cpu. " + EXPECTED),
        (torch.randn(3, 32, 32), "Given: a tensor (3, 32, 32), float32 on cpu. " + EXPECTED),
        (torch.randn(2, 3, 32, 32).double(), "float64 on cpu. " + EXPECTED),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8 on cpu. " + EXPECTED),
        ((torch.randn(2, 3, 32, 32), 7), "float32 on cpu, a int. " + EXPECTED),
        ((), "Given: no arguments. " + EXPECTED),
        ([torch.randn(3, 32, 32)], "example=(images,)); got a list"),
        ("3x32x32", "must be a tensor, or a tuple of the model's positional arguments"),
        ((2, 3, 32, 32), "but 5 were given. Given: a int, a int, a int and 1 more"),
    ],
)
def test_an_example_that_does_not_fit_is_refused_by_what_would(example, said):
    model = NETWORKS["resnet"].build().train()
    before, state = snapshots.of_model(model), torch.get_rng_state()
    with pytest.raises(ArgumentError) as refused:
        plan_eca(model, example=example)
    assert said in str(refused.value)
    assert snapshots.of_model(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_errors_say_that_one_dimensional_networks_take_signals():
    with pytest.raises(ArgumentError, match=r"convolution, 0, takes \(N, 3, L\)"):
        plan_eca(NETWORKS["signal"].build(), min_channels=1, example=torch.randn(2, 4, 16))


def test_what_the_selection_refuses_comes_before_the_example():
    with pytest.raises(ArgumentError, match=r"include pattern 'no\.\*' matches none"):
        plan_eca(NETWORKS["resnet"].build(), include="no.*", example="no tensor")


class _Permuted(nn.Module):
    """Puts its convolution's channels last, where attention does not look for them."""

    def __init__(self):
        super().__init__()
        self.conv = _ChannelsLast(3, 16, 1)

    def forward(self, x):
        return self.conv(x)


class _ChannelsLast(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).flatten(2).transpose(1, 2)


def test_a_network_that_would_fail_attended_is_refused_by_the_site():
    model = _Permuted()
    with pytest.raises(ModelError, match=r"^conv: the model's forward works on the example, but"):
        plan_eca(model, min_channels=1, example=torch.randn(1, 3, 8, 8))
    assert type(model.conv) is _ChannelsLast


def test_a_model_that_cannot_be_copied_is_refused():
    model = NETWORKS["resnet"].build()
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"cannot be copied: cannot pickle '_thread\.lock' object"):
        plan_eca(model, example=torch.randn(2, 3, 32, 32))
