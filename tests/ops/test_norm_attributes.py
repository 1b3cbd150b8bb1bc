"""A fused batch norm uses its current attributes, as torch's own forward does."""

import copy

import pytest
import torch
from torch import Tensor, nn

from composer_attn.ops import attend_then_normalize, normalize_then_attend
from tests.ops.norms import ROWS, SOME, changed
from tests.ops.regions import SMALL, Case, build, distance, draw

BACKENDS = ("reference", "cpp")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
either_order = pytest.mark.parametrize("attention_first", [True, False])


def outcome(case: Case, function, x: Tensor, dy: Tensor) -> tuple[str, dict[str, Tensor]]:
    """Return the error, and output, gradients and the norm's buffers."""
    x, error, found = x.clone().requires_grad_(), "", {}
    try:
        y = function(x, None)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    else:
        gradients = torch.autograd.grad(y, [x, *case.parameters()], dy)
        found = {"y": y.detach()} | {f"d{i}": d for i, d in enumerate(gradients)}
    return error, found | {name: value.clone() for name, value in case.norm.named_buffers()}


def assert_same(case: Case, other: Case, backend: str, steps: int = 2, name: object = "") -> str:
    for _ in range(steps):
        x, dy = draw(SMALL), draw(SMALL, mean=0)
        error, expected = outcome(case, case.plain, x, dy)
        found_error, found = outcome(other, lambda x, s: other.joint(x, s, backend), x, dy)
        assert found_error == error, name
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            assert distance(found[key], value) < 1e-12, (name, key)
    return error


def one_statistic_is_refused() -> bool:
    """Return whether torch's batch norm refuses, in training, to update a mean alone."""
    try:
        nn.functional.batch_norm(draw(SMALL), torch.zeros(SMALL[1]).double(), None, training=True)
    except (ValueError, RuntimeError):
        return True
    return False


@each_backend
@either_order
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [SOME, pytest.param(ROWS, marks=pytest.mark.slow)], ids=len)
def test_the_whole_table_of_attributes(backend, attention_first, training, rows):
    errors = set()
    for row in rows:
        case = build(SMALL, relu=True, attention_first=attention_first)
        changed(case.norm, row)
        case.norm.train(training)
        errors.add(assert_same(case, copy.deepcopy(case), backend, name=row))
    # Torch refuses to evaluate by one statistic alone; newer ones (2.14) even to train with it.
    assert len(errors) == ((2 if one_statistic_is_refused() else 1) if training else 3)


@each_backend
@either_order
def test_attributes_changed_between_steps(backend, attention_first):
    """Freezing, thawing and other steps of trainers, on one pair of modules."""
    case = build(SMALL, attention_first=attention_first)
    other = copy.deepcopy(case)
    mean, weight = torch.randn(2, 6).double()
    steps = [
        lambda norm: setattr(norm, "track_running_stats", False),
        lambda norm: norm.eval(),
        lambda norm: norm.train(),
        lambda norm: setattr(norm, "track_running_stats", True),
        lambda norm: setattr(norm, "momentum", None),
        lambda norm: norm.reset_running_stats(),
        lambda norm: setattr(norm, "momentum", 0.01),
        lambda norm: setattr(norm, "eps", 0.1),
        lambda norm: setattr(norm, "training", False),
        lambda norm: setattr(norm, "running_mean", mean.clone()),
        lambda norm: setattr(norm, "weight", nn.Parameter(weight.clone())),
        lambda norm: norm.weight.requires_grad_(False).requires_grad_(True),
        lambda norm: setattr(norm, "num_batches_tracked", None),
        lambda norm: norm.train(),
        lambda norm: [setattr(norm, f"running_{each}", None) for each in ("mean", "var")],
        lambda norm: norm.eval(),
    ]
    for number, step in enumerate(steps):
        step(case.norm)
        step(other.norm)
        assert assert_same(case, other, backend, steps=1, name=number) == ""


ODD = {
    "shape of the weight": lambda n: setattr(n, "weight", nn.Parameter(torch.ones(5).double())),
    "shape of the statistics": lambda n: setattr(n, "running_var", torch.ones(5).double()),
    "dtype of the weight": lambda n: setattr(n, "weight", nn.Parameter(torch.ones(6))),
    "dtype of the statistics": lambda n: setattr(n, "running_mean", torch.zeros(6)),
    "device of the weight": lambda n: setattr(n, "weight", nn.Parameter(n.weight.to("meta"))),
    "momentum": lambda n: setattr(n, "momentum", "0.1"),
    "eps": lambda n: setattr(n, "eps", None),
}


@each_backend
@either_order
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_what_torch_refuses_is_refused_alike(backend, attention_first, training, change):
    case = build(SMALL, training=training, attention_first=attention_first)
    change(case.norm)
    x = draw(SMALL)
    errors = []
    for run in (case.plain, lambda *a: case.joint(*a, backend)):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            run(x, None)
        errors.append((type(raised.value), str(raised.value)))
    assert errors[0] == errors[1]


@each_backend
def test_a_norm_that_says_another_number_of_features_than_it_has(backend):
    """As pruning leaves them; torch reads the tensors alone."""
    case = build(SMALL)
    case.norm.num_features = 12
    assert assert_same(case, copy.deepcopy(case), backend) == ""


class Any2d(nn.BatchNorm2d):
    """Takes, and refuses, other inputs than its base."""

    def _check_input_dim(self, input):
        if len(input) == 3:
            raise ValueError("three are too many")


@pytest.mark.parametrize("function", [attend_then_normalize, normalize_then_attend])
def test_a_norm_that_checks_its_input_itself(function):
    case = build(SMALL)
    norm = Any2d(6).double()
    with pytest.raises(ValueError, match="three are too many"):
        function(draw(SMALL), case.attention, norm)
    x = draw((2, *SMALL[1:]))
    plain = copy.deepcopy(norm)(case.attention(x))
    torch.testing.assert_close(attend_then_normalize(x, case.attention, norm), plain)
