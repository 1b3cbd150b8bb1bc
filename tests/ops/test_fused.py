"""The fused passes compute the same as the two modules, in float64."""

import itertools

import pytest
import torch
from torch import nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.errors import ArgumentError
from composer_attn.ops import attend, attend_then_normalize, normalize_then_attend
from tests.attention.attentions import GATES, STARTS
from tests.ops.regions import ATTENTIONS, SHAPES, SMALL, build, differences, draw

FAST = ("reference", "cpp")
each_backend = pytest.mark.parametrize("backend", FAST)
each_attention = pytest.mark.parametrize("attention", ATTENTIONS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_layout = pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
either_order = pytest.mark.parametrize("attention_first", [True, False])
ENDS = [
    {"relu": relu, "shortcut": shortcut} for relu in (False, True) for shortcut in (False, True)
]
each_end = pytest.mark.parametrize("end", ENDS, ids=["none", "shortcut", "relu", "shortcut_relu"])
SETTINGS = {
    "default": {},
    "no_affine": {"affine": False},
    "cumulative": {"momentum": None},
    "momentum_0": {"momentum": 0.0},
    "untracked": {"track_running_stats": False},
    "large_eps": {"eps": 0.3},
}


@each_backend
@each_shape
@each_layout
@either_order
@each_end
def test_shapes_layouts_and_ends(backend, shape, last, attention_first, end):
    case = build(shape, attention_first=attention_first, **end)
    assert max(differences(case, shape, backend, last).values()) < 1e-12


@each_backend
@either_order
@each_attention
@pytest.mark.parametrize(("gate", "start"), list(itertools.product(GATES, STARTS)))
def test_attentions_gates_and_starts(backend, attention_first, attention, gate, start):
    case = build(SMALL, attention, gate=gate, start=start, attention_first=attention_first)
    assert max(differences(case, SMALL, backend).values()) < 1e-12


@each_backend
@either_order
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_norm_over_five_steps(backend, attention_first, training, setting):
    options = SETTINGS[setting] | {"training": training, "attention_first": attention_first}
    case = build(SMALL, relu=True, **options)
    found = differences(case, SMALL, backend, steps=5)
    assert max(found.values()) < 1e-12
    assert ("running_var" in found) == (setting != "untracked")
    if setting != "untracked":
        assert case.norm.num_batches_tracked == 5 * training


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SMALL, (2, 70, 35), (1, 8, 3, 3)], ids=str)
@each_layout
@each_end
def test_inductor_writes_the_same(shape, last, end):
    assert max(differences(build(shape, **end), shape, "inductor", last).values()) < 1e-12


@each_backend
@each_shape
@each_layout
def test_attention_alone(backend, shape, last):
    x, dy = draw(shape, last=last).requires_grad_(), draw(shape, last=last, mean=0)
    attention = build(shape).attention
    wanted = [x, *attention.parameters()]
    y, expected = attend(x, attention, backend), attention(x)
    assert y.stride() == expected.stride()
    pairs = zip(torch.autograd.grad(y, wanted, dy), torch.autograd.grad(expected, wanted, dy),
                strict=True)  # fmt: skip
    for found, right in [(y, expected), *pairs]:
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@each_backend
def test_a_new_identity_attention_multiplies_by_exactly_1(backend):
    x = draw(SMALL, torch.float32)
    assert torch.equal(attend(x, SqueezeExcitation(6, 3, start="identity"), backend), x)


@each_backend
@pytest.mark.parametrize("which", ["sliced", "expanded", "permuted"])
def test_inputs_and_gradients_of_any_strides(backend, which):
    changes = {
        "sliced": lambda x: torch.cat([x, x], 3)[..., ::2],
        "expanded": lambda x: x[..., :1].expand(x.shape),
        "permuted": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    }
    x, dy, shortcut = (changes[which](draw(SMALL)) for _ in range(3))
    for case in [build(SMALL, relu=True), build(SMALL, relu=True, shortcut=True)]:
        case.norm.momentum = 0.0
        x = x.detach().requires_grad_()
        added = shortcut if case.shortcut else None
        (expected,) = torch.autograd.grad(case.plain(x, added), x, dy)
        (found,) = torch.autograd.grad(case.joint(x, added, backend), x, dy)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@each_backend
@pytest.mark.parametrize("relu", [True, False])
def test_shortcuts_of_another_shape_or_dtype_are_added_as_torch_adds_them(backend, relu):
    case = build(SMALL, dtype=torch.float32, relu=relu)
    x = draw(SMALL, torch.float32)
    for shortcut in (torch.randn(6, 1, 1), torch.randn(SMALL).double(), torch.tensor(2.0)):
        expected, y = case.plain(x, shortcut), case.joint(x, shortcut, backend)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


ODD = {
    "one value a channel": ((1, 6, 1, 1), nn.BatchNorm2d(6), ValueError, "more than 1 value"),
    "dimensions": ((2, 6, 4), nn.BatchNorm2d(6), ValueError, "expected 4D input"),
    "channels of the norm": ((2, 6, 4, 4), nn.BatchNorm2d(5), RuntimeError, "contain 6 elements"),
    "channels of the attention": ((2, 7, 4, 4), nn.BatchNorm2d(7), ValueError, "over 6 channels"),
    "no positions": ((2, 6), nn.BatchNorm1d(6), ValueError, "over 6 channels"),
}


@pytest.mark.parametrize("function", [attend_then_normalize, normalize_then_attend])
@pytest.mark.parametrize(("shape", "norm", "error", "message"), ODD.values(), ids=ODD)
def test_what_the_modules_refuse_is_refused_as_they_do(function, shape, norm, error, message):
    with pytest.raises(error, match=message):
        function(torch.randn(shape), SqueezeExcitation(6, 3), norm)


def test_attention_alone_refuses_as_the_module_does():
    with pytest.raises(ValueError, match="over 6 channels"):
        attend(torch.randn(2, 7, 4, 4), SqueezeExcitation(6, 3))


@pytest.mark.parametrize("training", [True, False])
def test_no_images_and_single_values_in_evaluation(training):
    case = build((0, 6, 4, 4), training=training)
    assert case.joint(torch.empty(0, 6, 4, 4).double(), None).shape == (0, 6, 4, 4)
    assert attend(torch.empty(0, 6, 4, 4).double(), case.attention).shape == (0, 6, 4, 4)
    single = build((1, 6, 1, 1), training=False)
    x = draw((1, 6, 1, 1))
    torch.testing.assert_close(single.joint(x, None), single.plain(x, None))


def test_other_norms_run_as_they_are():
    attention, norm = SqueezeExcitation(6, 3), nn.LayerNorm(7)
    x = torch.randn(SMALL)
    assert torch.equal(attend_then_normalize(x, attention, norm), norm(attention(x)))
    lazy = nn.LazyBatchNorm2d()
    assert attend_then_normalize(x, attention, lazy).shape == SMALL
    assert lazy.num_features == 6


@pytest.mark.parametrize("name", ["Triton", "", None, 3])
def test_an_unknown_backend_is_refused(name):
    case = build(SMALL)
    x = draw(SMALL)
    for call in (lambda: case.joint(x, None, name), lambda: attend(x, case.attention, name)):
        with pytest.raises(ArgumentError, match="one of auto, reference, inductor, triton, cpp"):
            call()
