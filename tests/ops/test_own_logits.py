"""User-defined attentions, whatever their logits do: gradients are those of plain torch."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.ops import attend, stages
from composer_attn.ops.fused_functions import Region
from tests.ops.regions import SMALL, build, draw

CHANNELS = SMALL[1]


class Own(SqueezeExcitation):
    """Logits by the two layers, and what a subclass makes of them."""

    def __init__(self):
        super().__init__(CHANNELS, 3, dtype=torch.float64)
        nn.init.normal_(self.fc1.weight)
        nn.init.normal_(self.fc2.weight)
        self.table = nn.Parameter(torch.randn(SMALL[0], CHANNELS, dtype=torch.float64))

    def layers(self, means: Tensor) -> Tensor:
        return super().logits(means)


class Independent(Own):
    def logits(self, means):
        return self.table


class OfOneNumber(Own):
    def logits(self, means):
        return self.table[:1, :1]


class Broadcast(Own):
    def logits(self, means):
        return self.layers(means).mean(1, keepdim=True)


class Detached(Own):
    def logits(self, means):
        return self.layers(means.detach())


class Frozen(Own):
    def logits(self, means):
        with torch.no_grad():
            return self.layers(means)


class Transposed(Own):
    def logits(self, means):
        return self.layers(means).t().contiguous().t()


class Expanded(Own):
    def logits(self, means):
        return self.layers(means).sum(1, keepdim=True).expand(-1, CHANNELS)


class Sliced(Own):
    def logits(self, means):
        return torch.stack([self.layers(means), means], 2)[..., 0]


class InPlace(Own):
    """What it is given is its own, as an average would be."""

    def logits(self, means):
        return self.layers(means.mul_(0.5).sub_(means.mean(1, keepdim=True)))


class Itself(Own):
    def logits(self, means):
        return means


class Penalized(Own):
    """Keeps a term of the loss."""

    def logits(self, means):
        logits = self.layers(means)
        self.penalty = logits.square().mean() + means.pow(3).mean()
        return logits


OWN = [Independent, OfOneNumber, Broadcast, Detached, Frozen, Transposed, Expanded, Sliced, InPlace,
       Itself, Penalized]  # fmt: skip
each_own = pytest.mark.parametrize("kind", OWN)
each_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])
PLACES = ["alone", "first", "last"]
each_place = pytest.mark.parametrize("place", PLACES)


def pair(kind: type[Own], place: str, training: bool = True, relu: bool = False):
    """Return the plain computation, and the joint one of a copy, each with its attention."""
    case = build(SMALL, training=training, attention_first=place == "first", relu=relu)
    case.attention = kind()
    other = copy.deepcopy(case)

    def plain(x):
        return case.attention(x) if place == "alone" else case.plain(x, None)

    def jointly(x, backend):
        if place == "alone":
            return attend(x, other.attention, backend)
        return other.joint(x, None, backend)

    return (case, plain), (other, jointly)


def gradients(loss: Tensor, x: Tensor, case, **options) -> list[Tensor | None]:
    wanted = [x, *case.parameters()]
    return torch.autograd.grad(loss, wanted, allow_unused=True, **options)


def same(found, expected, tolerance=1e-11) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        one, other = (torch.tensor(0.0).double() if g is None else g for g in (one, other))
        torch.testing.assert_close(one, other.expand_as(one), rtol=tolerance, atol=tolerance)


@each_own
@each_backend
@each_place
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_plain_torch(kind, backend, place, training, relu):
    (case, plain), (other, run) = pair(kind, place, training, relu)
    dy, found = draw(SMALL, mean=0), []
    xs = [draw(SMALL).requires_grad_()]
    xs.append(xs[0].detach().clone().requires_grad_())
    for x, y, c in ((xs[0], plain(xs[0]), case), (xs[1], run(xs[1], backend), other)):
        found.append([y, *gradients((y * dy).sum(), x, c)])
    same(found[1], found[0])
    same([*other.norm.buffers()], [*case.norm.buffers()])


@each_own
@each_backend
@each_place
def test_an_input_without_gradient_leaves_the_parameters_theirs(kind, backend, place):
    (case, plain), (other, run) = pair(kind, place)
    x, found = draw(SMALL), []
    for y, c in ((plain(x), case), (run(x, backend), other)):
        if not y.requires_grad:
            found.append([])
            continue
        found.append(torch.autograd.grad(y.square().sum(), c.parameters(), allow_unused=True))
    same(found[1], found[0])


def losses(y: Tensor, penalty: Tensor) -> dict[str, list[Tensor]]:
    """Ways to use an output and a penalty, each a list of losses to differentiate one by one."""
    return {
        "sum": [y.pow(2).sum() + penalty],
        "penalty alone": [penalty],
        "penalty first": [penalty, y.pow(2).sum()],
        "output first": [y.pow(2).sum(), penalty],
        "output twice": [y.pow(2).sum(), y.pow(3).sum()],
        "one and both": [y.pow(2).sum(), penalty, y.pow(3).sum() + penalty, y.pow(2).sum()],
    }


@each_backend
@each_place
@pytest.mark.parametrize("way", losses(torch.ones(()), torch.ones(())))
def test_a_penalty_kept_on_the_side(backend, place, way):
    (case, plain), (other, run) = pair(Penalized, place, relu=True)
    x, found = draw(SMALL).requires_grad_(), []
    for y, c in ((plain(x), case), (run(x, backend), other)):
        all_losses = losses(y, c.attention.penalty)[way]
        found.append([g for loss in all_losses for g in gradients(loss, x, c, retain_graph=True)])
    same(found[1], found[0], 1e-10)


@each_backend
@each_place
def test_a_region_used_twice_before_any_backward(backend, place):
    (case, plain), (other, run) = pair(Penalized, place)
    x, z, found = draw(SMALL).requires_grad_(), draw(SMALL), []
    for function, c in ((plain, case), (lambda x: run(x, backend), other)):
        y = function(x)
        first = c.attention.penalty
        loss = (y * function(x + z)).sum() + first + c.attention.penalty
        found.append(gradients(loss, x, c))
    same(found[1], found[0], 1e-10)


@each_backend
@pytest.mark.parametrize("attribute", ["kept"])
def test_means_that_are_kept_are_differentiable(backend, attribute):
    class Keeps(Own):
        def logits(self, means):
            setattr(self, attribute, means)
            return self.layers(means)

    (case, plain), (other, run) = pair(Keeps, "first")
    x, found = draw(SMALL).requires_grad_(), []
    for y, c in ((plain(x), case), (run(x, backend), other)):
        kept = c.attention.kept
        found.append([kept, *torch.autograd.grad((kept * kept).sum() + y.sum() * 0.5, x)])
    same(found[1], found[0])


@each_backend
@each_place
def test_the_second_derivative_of_own_logits_is_refused(backend, place):
    _, (_, run) = pair(Penalized, place)
    x = draw(SMALL).requires_grad_()
    (gradient,) = torch.autograd.grad(run(x, backend).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# One that keeps a penalty holds the graph itself.
@pytest.mark.parametrize("kind", [kind for kind in OWN if kind is not Penalized])
@each_backend
@each_place
def test_an_unreferenced_graph_is_freed_at_once(kind, backend, place, monkeypatch):
    """The two halves of a region form no reference cycle, which nothing would collect."""
    _, (_, run) = pair(kind, place, relu=True)
    regions = []

    def build(*arguments, **options):
        region = Region(*arguments, **options)
        regions.append(weakref.ref(region))
        return region

    monkeypatch.setattr(stages, "Region", build)
    gc.disable()
    try:
        y = run(draw(SMALL).requires_grad_(), backend)
        assert [each() is not None for each in regions] == [True]
        del y
        assert [each() is None for each in regions] == [True]
    finally:
        gc.enable()
