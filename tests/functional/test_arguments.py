"""Arguments: passed on to the attentions, and refused by name where they are not valid."""

import pytest
from torch import nn

from composer_attn.errors import ArgumentError, ComposerAttnError
from composer_attn.functional import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    plan_eca,
    plan_squeeze_excite,
)
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_surgery

WRONG = [
    ({"min_channels": 0}, "min_channels must be a whole number >= 1; got 0"),
    ({"min_channels": 2.5}, "min_channels must be a whole number >= 1; got 2.5"),
    ({"min_channels": True}, "min_channels must be a whole number >= 1; got True"),
    ({"min_channels": "64"}, "min_channels must be a whole number >= 1; got '64'"),
    ({"gate": "softmax"}, "gate must be one of sigmoid, hard_sigmoid, tanh, relu; got 'softmax'"),
    ({"start": "warm"}, "start must be one of paper, identity; got 'warm'"),
    ({"include": 3}, "include must be a glob pattern of module names"),
    ({"exclude": ["a", None]}, "exclude must be a glob pattern of module names"),
    ({"filter_fn": "conv"}, r"filter_fn must be a function of \(name, module\)"),
]
WRONG_SQUEEZE_EXCITE = [
    ({"latent_channels": value}, "latent_channels must be a whole number >= 1, or a fraction")
    for value in (2.9, 0, -3, True, float("nan"), "64", None)
]
WRONG_ECA = [
    ({"kernel_size": 4}, "kernel_size must be odd, or None"),
    ({"kernel_size": 0}, "kernel_size must be a whole number >= 1; got 0"),
    ({"kernel_size": 3.0}, "kernel_size must be a whole number >= 1; got 3.0"),
    ({"gamma": 0}, "gamma must be a real number other than 0; got 0"),
    ({"b": "1"}, "b must be a real number; got '1'"),
]
CASES = [
    *((function, *case) for function in (apply_squeeze_excite, plan_squeeze_excite)
      for case in WRONG + WRONG_SQUEEZE_EXCITE),
    *((function, *case) for function in (apply_eca, plan_eca) for case in WRONG + WRONG_ECA),
]  # fmt: skip


@pytest.mark.parametrize(("function", "wrong", "message"), CASES)
def test_a_wrong_argument_is_an_error_before_anything_changes(function, wrong, message):
    model = NETWORKS["residual"].build()
    before = snapshots.of_model(model)
    with pytest.raises(ArgumentError, match=message):
        function(model, **{"min_channels": 16, **wrong})
    assert snapshots.of_model(model) == before


@pytest.mark.parametrize(("function", "wrong", "message"), CASES)
def test_a_wrong_argument_is_an_error_even_where_there_is_nothing_to_attend(
    function, wrong, message
):
    with pytest.raises(ArgumentError, match=message):
        function(nn.Linear(2, 2), **wrong)


@each_surgery
@pytest.mark.parametrize("model", [None, "resnet18", nn.Conv2d, [nn.Conv2d(3, 128, 1)]])
def test_a_model_that_is_not_a_module_is_an_error(surgery, model):
    for function in (surgery.apply, surgery.plan):
        with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module; got a "):
            function(model)


def test_errors_are_the_packages_own_and_the_built_in_one_expected():
    with pytest.raises(ComposerAttnError):
        apply_eca(nn.Linear(2, 2), kernel_size=2)
    with pytest.raises(ValueError, match="kernel_size"):
        apply_eca(nn.Linear(2, 2), kernel_size=2)


def test_squeeze_excite_hands_its_arguments_to_each_attention():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1))
    plan = apply_squeeze_excite(model, 0.25, 16, bias=True, gate="tanh", start="identity")
    found = attended_modules(model)
    assert [a.latent_channels for a in found.values()] == [4, 8]
    assert plan.parameters == 2 * 4 * 16 + 4 + 16 + 2 * 8 * 32 + 8 + 32
    assert {(a.gate, a.start, a.fc1.bias is None) for a in found.values()} == {
        ("tanh", "identity", False)
    }


def test_eca_hands_its_arguments_to_each_attention():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 256, 1))
    apply_eca(model, None, 16, gamma=1, b=2, gate="relu", start="identity")
    found = attended_modules(model)
    assert [a.kernel_size for a in found.values()] == [7, 11]  # log2(C) + 2 = 6 and 10, made odd
    assert {(a.gate, a.start) for a in found.values()} == {("relu", "identity")}
    other = nn.Conv2d(3, 256, 1)
    assert apply_eca(other, 9).parameters == 9
