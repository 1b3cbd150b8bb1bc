"""Non-finite values spread no further than through the modules themselves."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.ops import attend
from tests.attention.attentions import GATES, STARTS
from tests.ops.regions import ATTENTIONS, SHAPES, build, draw

# Three samples, six channels; the middle of an odd map is where its moments are shifted from.
SHAPE = SHAPES[2]
AT = {"middle": (1, 2, 2, 3), "corner": (1, 2, 0, 0)}
VALUES = {"inf": math.inf, "minus": -math.inf, "nan": math.nan}
each_place = pytest.mark.parametrize("place", ["alone", "first", "last"])
each_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])
each_position = pytest.mark.parametrize("at", AT.values(), ids=AT)
each_value = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
either_mode = pytest.mark.parametrize("training", [True, False])


class Fixed(SqueezeExcitation):
    """Its scales do not depend on the map."""

    def logits(self, means):
        return self.fc2.bias.expand_as(means)


def run(case, function, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    found = {"y": y.detach(), "x": torch.autograd.grad(y, x, dy, retain_graph=True)[0]}
    parameters = {f"p{i}": p for i, p in enumerate(case.parameters())}
    gradients = torch.autograd.grad(y, [*parameters.values()], dy, allow_unused=True)
    found |= {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
    return found | {name: b.clone() for name, b in case.norm.named_buffers()}


def check(case, place: str, backend: str, at, value: float) -> None:
    other = copy.deepcopy(case)
    x, dy = draw(SHAPE), draw(SHAPE, mean=0)
    x[at] = value

    def plain(x):
        return case.attention(x) if place == "alone" else case.plain(x, None)

    def joint(x):
        if place == "alone":
            return attend(x, other.attention, backend)
        return other.joint(x, None, backend)

    expected, found = run(case, plain, x, dy), run(other, joint, x, dy)
    assert found.keys() == expected.keys()
    assert not all(each.isfinite().all() for each in expected.values())
    for name, right in expected.items():
        finite = right.isfinite()
        assert found[name][finite].isfinite().all(), name
        torch.testing.assert_close(found[name][finite], right[finite], rtol=1e-10, atol=1e-10)


@each_backend
@each_place
@each_position
@each_value
@either_mode
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_through_every_attention(backend, place, at, value, training, attention):
    case = build(SHAPE, attention, training=training, attention_first=place == "first", relu=True)
    check(case, place, backend, at, value)


@each_backend
@each_place
@each_value
@either_mode
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("start", STARTS)
def test_through_every_gate(backend, place, value, training, gate, start):
    options = {"gate": gate, "start": start, "training": training}
    check(build(SHAPE, "eca", attention_first=place == "first", **options),
          place, backend, AT["middle"], value)  # fmt: skip


@each_backend
@each_place
@each_position
@each_value
@either_mode
def test_through_scales_that_do_not_depend_on_the_map(backend, place, at, value, training):
    case = build(SHAPE, training=training, attention_first=place == "first")
    case.attention = Fixed(6, 3, bias=True, dtype=torch.float64)
    check(case, place, backend, at, value)


@each_backend
@either_mode
@each_position
def test_one_value_of_an_evaluated_map_or_the_channel_whose_statistics_have_it(
    backend, training, at
):
    case = build(SHAPE, "eca", training=training)
    other = copy.deepcopy(case)
    x = draw(SHAPE)
    x[at] = math.inf
    expected, found = case.plain(x, None), other.joint(x, None, backend)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert int((~found.isfinite()).sum()) == (3 * 5 * 7 if training else 1)


@each_backend
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_relu_hands_on_the_gradient_of_nan_as_torch_does(backend, shortcut):
    case = build(SHAPE, training=False, relu=True, shortcut=shortcut)
    nn.init.constant_(case.norm.bias[2:3].data, math.nan)
    x, added, dy = draw(SHAPE), draw(SHAPE) if shortcut else None, draw(SHAPE, mean=0)
    found = [
        torch.autograd.grad(y, case.norm.bias, dy)[0]
        for y in (case.plain(x, added), case.joint(x, added, backend))
    ]
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[1], found[0])
