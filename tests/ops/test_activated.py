"""Norm, activation and attention fused compute the same as the modules, in float64."""

import pytest
import torch
from torch import nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.errors import ArgumentError
from composer_attn.ops import (
    activate_attend,
    attend_then_normalize,
    normalize_activate,
    normalize_activate_attend,
    normalize_then_attend,
)
from composer_attn.ops.activations import ACTIVATIONS, activation_of, find_activation
from composer_attn.ops.excitations import describe, neighbours, one_layer, two_layers
from tests.attention.attentions import GATES
from tests.ops import regions
from tests.ops.activated_regions import FOREIGN, MODULES, PARTS, build, differences
from tests.ops.regions import ATTENTIONS, SHAPES, SMALL, draw
from tests.ops.test_fused import SETTINGS

each_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_layout = pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
each_parts = pytest.mark.parametrize("parts", PARTS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
either = pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
# Relative to the largest value, where that is above 1.
EXACT = 1e-12


@each_backend
@each_parts
@each_activation
@either
@pytest.mark.parametrize("training", [True, False])
def test_every_activation_in_every_place(backend, parts, activation, shortcut, training):
    site = build(SMALL, activation, parts=parts, shortcut=shortcut, training=training)
    found = differences(site, SMALL, backend)
    assert {"y", "x"} <= set(found)
    assert max(found.values()) < EXACT


@each_backend
@each_parts
@each_shape
@each_layout
@either
def test_shapes_and_layouts(backend, parts, shape, last, shortcut):
    site = build(shape, parts=parts, shortcut=shortcut)
    assert max(differences(site, shape, backend, last).values()) < EXACT


@each_backend
@pytest.mark.parametrize("attention", [*ATTENTIONS, *FOREIGN])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("parts", ["norm_attention", "attention"])
def test_attentions_and_gates(backend, attention, gate, parts):
    site = build(SMALL, "hardswish", attention, parts, gate=gate)
    assert max(differences(site, SMALL, backend).values()) < EXACT


@each_backend
@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_settings_of_the_norm_over_five_steps(backend, parts, setting, training, activation):
    site = build(SMALL, activation, parts=parts, training=training, **SETTINGS[setting])
    found = differences(site, SMALL, backend, steps=5)
    assert max(found.values()) < EXACT
    assert ("running_var" in found) == (setting != "untracked")


@each_backend
@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
def test_a_large_mean_cancels_nowhere(backend, parts):
    for activation in ("silu", "identity"):
        site = build(SMALL, activation, parts=parts)
        assert max(differences(site, SMALL, backend, mean=1e3).values()) < 1e-9


@each_backend
@each_activation
@either
@pytest.mark.parametrize("attention_first", [True, False])
@pytest.mark.parametrize("own", [False, True])
def test_every_activation_ends_the_other_orders(
    backend, activation, shortcut, attention_first, own
):
    class Site(regions.Case):
        def plain(self, x, shortcut):
            return end(super().plain(x, shortcut))

        def joint(self, x, shortcut, backend="reference"):
            function = attend_then_normalize if self.attention_first else normalize_then_attend
            options = {"shortcut": shortcut, "activation": end}
            return function(x, self.attention, self.norm, backend, **options)

    end = MODULES[activation]()
    case = regions.build(SMALL, attention_first=attention_first, shortcut=shortcut)
    if own:
        case.attention.logits_by_hand = lambda: None
    case = Site(case.attention, case.norm, attention_first, False, shortcut)
    assert max(regions.differences(case, SMALL, backend, last=True).values()) < EXACT


@each_backend
@pytest.mark.parametrize("kind", [SqueezeExcitation])
def test_custom_layers_are_computed_after_norm_and_activation(backend, kind):
    class Own(kind):
        def logits(self, means):
            return super().logits(means).sin()

    site = build(SMALL, "mish")
    site.attention = Own(SMALL[1], 3).double()
    assert max(differences(site, SMALL, backend).values()) < EXACT


@pytest.mark.parametrize("squeeze", ["max", "none"])
def test_other_squeezes_than_averages_are_the_modules_own(squeeze):
    site = build(SMALL, "relu6")
    site.attention = SqueezeExcitation(SMALL[1], 3, squeeze=squeeze).double()
    assert max(differences(site, SMALL, "cpp").values()) < EXACT


@each_backend
@each_parts
def test_shortcuts_of_another_shape_or_dtype_are_added_as_torch_adds_them(backend, parts):
    site = build(SMALL, "gelu", parts=parts, dtype=torch.float32)
    x = draw(SMALL, torch.float32)
    for shortcut in (torch.randn(6, 1, 1), torch.randn(SMALL).double(), torch.tensor(2.0)):
        expected, y = site.plain(x, shortcut), site.joint(x, shortcut, backend)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("activation", ["silu", "leaky_relu", "relu"])
@each_layout
def test_inductor_writes_the_same(parts, activation, last):
    site = build(SMALL, activation, parts=parts)
    assert max(differences(site, SMALL, "inductor", last).values()) < EXACT


ODD = {
    "one value a channel": ((1, 6, 1, 1), nn.BatchNorm2d(6), ValueError, "more than 1 value"),
    "dimensions": ((2, 6, 4), nn.BatchNorm2d(6), ValueError, "expected 4D input"),
    "channels of the norm": ((2, 6, 4, 4), nn.BatchNorm2d(5), RuntimeError, "contain 6 elements"),
    "channels of the attention": ((2, 7, 4, 4), nn.BatchNorm2d(7), ValueError, "over 6 channels"),
}


@pytest.mark.parametrize(("shape", "norm", "error", "message"), ODD.values(), ids=ODD)
def test_what_the_modules_refuse_is_refused_as_they_do(shape, norm, error, message):
    described = two_layers(nn.Linear(6, 3), nn.Linear(3, 6))
    for attention in (SqueezeExcitation(6, 3), described):
        with pytest.raises(error, match=message):
            normalize_activate_attend(torch.randn(shape), norm, "silu", attention)


@pytest.mark.parametrize("training", [True, False])
def test_no_images_and_single_values_in_evaluation(training):
    for parts in PARTS:
        site = build((0, 6, 4, 4), parts=parts, training=training)
        assert site.joint(torch.empty(0, 6, 4, 4).double()).shape == (0, 6, 4, 4)
        single, x = build((1, 6, 1, 1), parts=parts, training=False), draw((1, 6, 1, 1))
        torch.testing.assert_close(single.joint(x), single.plain(x))


def test_other_norms_run_as_they_are():
    x, attention = torch.randn(SMALL), SqueezeExcitation(6, 3)
    norm = nn.LayerNorm(7)
    expected = attention(nn.functional.silu(norm(x)))
    torch.testing.assert_close(normalize_activate_attend(x, norm, "silu", attention), expected)
    assert torch.equal(normalize_activate(x, norm, "silu"), nn.functional.silu(norm(x)))


@pytest.mark.parametrize("name", ["SiLU", "", None, 3, nn.Softplus(), nn.ReLU])
def test_an_unknown_activation_is_refused(name):
    x, norm, attention = draw(SMALL).float(), nn.BatchNorm2d(6), SqueezeExcitation(6, 3)
    for call in (
        lambda: normalize_activate_attend(x, norm, name, attention),
        lambda: normalize_activate(x, norm, name),
        lambda: activate_attend(x, name, attention),
        *((lambda: attend_then_normalize(x, attention, norm, activation=name),) if name else ()),
    ):
        with pytest.raises(ArgumentError, match="activation must be one of identity, relu, relu6"):
            call()
    assert norm.num_batches_tracked == 0


def test_two_activations_at_an_end_contradict_each_other():
    x, norm, attention = draw(SMALL).float(), nn.BatchNorm2d(6), SqueezeExcitation(6, 3)
    with pytest.raises(ArgumentError, match="contradict"):
        attend_then_normalize(x, attention, norm, relu=True, activation="silu")
    y = attend_then_normalize(x, attention, norm, relu=True, activation="relu")
    assert torch.equal(y, attend_then_normalize(x, attention, norm, relu=True))


@pytest.mark.parametrize("backend", ["Triton", None])
def test_an_unknown_backend_is_refused(backend):
    site, x = build(SMALL), draw(SMALL)
    for parts in PARTS:
        site = build(SMALL, parts=parts)
        with pytest.raises(ArgumentError, match="one of auto, reference, inductor, triton, cpp"):
            site.joint(x, None, backend)


def test_modules_are_known_by_their_exact_type():
    class Own(nn.ReLU):
        def forward(self, x):
            return x

    assert [activation_of(make()).name for make in MODULES.values()] == list(MODULES)
    assert activation_of(Own()) is None
    for name, module in (("leaky_relu", nn.LeakyReLU()), ("elu", nn.ELU())):
        assert find_activation(name) == activation_of(module)


WRONG = {
    "first": lambda: two_layers(nn.Conv2d(6, 3, 3), nn.Conv2d(3, 6, 1)),
    "groups": lambda: two_layers(nn.Conv2d(6, 3, 1, groups=3), nn.Conv2d(3, 6, 1)),
    "second": lambda: two_layers(nn.Linear(6, 3), nn.Linear(2, 6)),
    "as many outputs": lambda: one_layer(nn.Linear(6, 3)),
    "layer must be": lambda: one_layer(nn.BatchNorm2d(6)),
    "gate": lambda: one_layer(nn.Linear(6, 6), "softmax"),
    "odd size": lambda: neighbours(6, nn.Conv1d(1, 1, 4, padding=2, bias=False)),
    "zero-padded": lambda: neighbours(
        6, nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    ),
    "and bias": lambda: neighbours(6, nn.Conv1d(1, 1, 3, padding=1)),
}


@pytest.mark.parametrize(("message", "call"), WRONG.items(), ids=WRONG)
def test_layers_that_are_something_else_are_refused(message, call):
    with pytest.raises(ArgumentError, match="1x1 convolution" if message == "groups" else message):
        call()


def test_a_description_is_data():
    fc1, fc2 = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
    found = two_layers(fc1, fc2, nn.SiLU(), "hard_sigmoid")
    assert found.parameters == (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    assert describe(6, found.layers, found.parameters, "sigmoid").layers == found.layers
    means = torch.randn(4, 6)
    expected = nn.functional.hardsigmoid(
        fc2(nn.functional.silu(fc1(means[..., None, None])))
    ).flatten(1)
    torch.testing.assert_close(found.scales(means), expected)


def test_the_table_of_modules_is_that_of_activations():
    assert set(MODULES) == set(ACTIVATIONS)
