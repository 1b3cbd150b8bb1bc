"""The deferred output of a fused module is its output: stored, branched on, or passed elsewhere.

Each of these forwards does more than a trace of it shows; it is fused, and computes the same.
"""

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from composer_attn.errors import ModelError
from composer_attn.functional import fuse_attention
from composer_attn.fusion.deferred_tensor import Deferred
from tests.fusion.programs import Cube, DoubledInPlace, Reverse, Same, scripted
from tests.fusion.test_numbers import assert_equal, gradients
from tests.surgeries import SURGERIES

CHANNELS = 16


class Parts(nn.Module):
    """A convolution, a norm with a history, a ReLU."""

    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
        self.relu, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.feature = None
        self.more, self.n = False, 1
        for tensor in (self.b.weight, self.b.bias, self.b.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(self.b.running_var, 0.5, 2)


def network(forward: Callable) -> type[Parts]:
    return type("Network", (Parts,), {"forward": forward})


def keeps_the_convolution(s, x):
    s.feature = s.c(x)
    return F.relu(s.b(s.feature))


def keeps_the_norm(s, x):
    s.feature = y = s.b(s.c(x))
    return s.relu(y + x)


def keeps_the_norm_that_is_added_to(s, x):
    s.feature = y = s.b(s.c(x))
    y += x
    return s.relu(y)


def keeps_the_norm_that_is_rectified(s, x):
    s.feature = y = s.b(s.c(x))
    return s.inplace(y)


def keeps_the_sum(s, x):
    s.feature = y = s.b(s.c(x)) + x
    return s.inplace(y)


def keeps_all(s, x):
    s.feature = [y := s.c(x)]
    s.feature.append(z := s.b(y))
    s.feature.append(a := z + x)
    return s.relu(a)


def asks_what_it_is(s, x):
    y = s.c(x)
    z = s.b(y)
    return z + y.mean() if isinstance(y, torch.Tensor) else z


def takes_a_default(s, x, skip=None):
    y = s.c(x)
    skip = y if skip is None else skip
    return F.relu(s.b(y) + skip)


def returns_more(s, x):
    y = s.c(x)
    z = s.b(y)
    a = z + x
    r = s.relu(a)
    return (r, y, a, z) if s.more else r


def loops(s, x):
    for _ in range(s.n):
        x = s.c(x)
    return s.b(x)


def returns_early(s, x):
    y = s.c(x)
    if s.more:
        return y
    return F.relu(s.b(y))


def closes_over(s, x):
    y = s.c(x)
    z = s.b(y)
    later = lambda: F.relu(z) * y  # noqa: E731
    return later()


def catches(s, x):
    y = s.c(x)
    try:
        if s.more:
            raise KeyError
        z = s.b(y)
    except KeyError:
        z = s.b(2 * y)
    return F.relu(z)


def convolves_without_gradients(s, x):
    with torch.no_grad():
        y = s.c(x)
    return F.relu(s.b(y))


def normalizes_without_gradients(s, x):
    y = s.c(x)
    with torch.no_grad():
        z = s.b(y)
    return F.relu(z + y)


def rectifies_without_gradients(s, x):
    y = s.b(s.c(x))
    with torch.no_grad():
        z = F.relu(y)
    return z + y


def checkpoints(part: Callable, reentrant: bool) -> Callable:
    return lambda s, x: part(s, x, lambda f, *xs: checkpoint(f, *xs, use_reentrant=reentrant))


def all_of_it(s, x, run):
    return run(lambda x: F.relu(s.b(s.c(x)) + x), x)


def the_convolution(s, x, run):
    return F.relu(s.b(run(s.c, x)) + x)


def the_norm(s, x, run):
    return F.relu(run(s.b, s.c(x)) + x)


def up_to_the_addition(s, x, run):
    return F.relu(run(lambda x: s.b(s.c(x)) + x, x))


def behind_the_norm(s, x, run):
    return run(lambda y: F.relu(y) * y, s.b(s.c(x)))


def hooks_the_norm(s, x):
    y = s.b(s.c(x))
    y.register_hook(lambda d: 3 * d)
    return F.relu(y)


def hooks_the_convolution(s, x):
    y = s.c(x)
    if y.requires_grad:
        y.register_hook(lambda d: 3 * d)
        y.retain_grad()
    s.feature = y
    return F.relu(s.b(y))


def writes_to_the_memory(s, x):
    y = s.c(x)
    y.detach().numpy()[0] = 2
    return F.relu(s.b(y))


def writes_to_the_data(s, x):
    y = s.c(x)
    y.data.mul_(2)
    return F.relu(s.b(y))


def gives_other_data(s, x):
    y = s.b(s.c(x))
    y.data = y.data * 2
    return F.relu(y)


def changes_in_place(s, x):
    y = s.c(x)
    y.mul_(x.mean())
    z = s.b(y)
    z[:, 0] = 1
    return F.relu(z + x)


def changes_a_part(s, x):
    y = s.b(s.c(x))
    y.flatten(1)[:, :3].add_(x.mean())
    return Cube.apply(y)


def changes_the_shape(s, x):
    y = s.b(s.c(x))
    y.unsqueeze_(0)
    return F.relu(y)[0]


def rectifies_in_place_before_the_norm(s, x):
    return F.relu(s.b(F.relu(s.c(x), inplace=True)))


def detaches(s, x):
    y = s.b(s.c(x))
    y.detach_()
    return F.relu(y) + x


def through(function: Callable) -> tuple[Callable, Callable]:
    """Put a function between convolution and norm, and between norm and ReLU."""
    return (
        lambda s, x: F.relu(s.b(function(s.c(x))) + x),
        lambda s, x: F.relu(function(s.b(s.c(x))) + x),
    )


FORWARDS = {
    each.__name__: each
    for each in (
        keeps_the_convolution, keeps_the_norm, keeps_the_norm_that_is_added_to,
        keeps_the_norm_that_is_rectified, keeps_the_sum, keeps_all, asks_what_it_is,
        takes_a_default, returns_more, loops, returns_early, closes_over, catches,
        convolves_without_gradients, normalizes_without_gradients, rectifies_without_gradients,
        hooks_the_norm, hooks_the_convolution, writes_to_the_memory, writes_to_the_data,
        gives_other_data, changes_in_place, changes_a_part, changes_the_shape,
        rectifies_in_place_before_the_norm, detaches,
    )
}  # fmt: skip
for part in (all_of_it, the_convolution, the_norm, up_to_the_addition, behind_the_norm):
    for reentrant in (True, False):
        name = f"{part.__name__}, {'' if reentrant else 'not '}reentrant"
        FORWARDS[name] = checkpoints(part, reentrant)
for title, function in {
    "reverse": Reverse.apply, "same": Same.apply, "cube": Cube.apply, "script": scripted,
    "double": DoubledInPlace.apply, "numpy": lambda x: x * float(x.detach().numpy().max()),
}.items():  # fmt: skip
    for name, forward in zip(("before", "after"), through(function), strict=True):
        FORWARDS[f"{title} {name} the norm"] = forward
each_forward = pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)


def pair(forward: Callable, surgery: str = "eca", placement: str = "conv") -> tuple[Parts, Parts]:
    """Build a network fused while its forward is the plainest, and one that is not fused."""
    torch.manual_seed(0)
    plain = network(lambda s, x: s.relu(s.b(s.c(x)) + x))().double()
    SURGERIES[surgery].apply(plain, min_channels=CHANNELS, placement=placement)
    fused = copy.deepcopy(plain)
    (site,) = fuse_attention(fused, backend="reference").fused
    assert (site.addition, site.activation) == ("add", "relu")
    for model in (plain, fused):
        type(model).forward = forward
        model.more, model.n = True, 2
    return plain, fused


def outcome(model: Parts, x: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
    """Return all numbers that a forward, and a backward in training, leave behind."""
    trains = mode in ("train", "eval")
    own = x.clone().requires_grad_(trains)
    with {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(
        mode, torch.enable_grad
    )():
        outputs, kept = model(own * 1), model.feature
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    kept = kept if isinstance(kept, list) else [] if kept is None else [kept]
    values = [*outputs, *kept]
    found = {str(i): value.detach().clone() for i, value in enumerate(values)}
    if trains:
        used = [value for value in values if value.requires_grad]
        sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in used).backward()
        found |= gradients(model)
        found |= {} if own.grad is None else {"dx": own.grad}
        found |= {f"d {i}": v.grad for i, v in enumerate(kept) if v.retains_grad}
    model.feature = None
    model.zero_grad()
    return found | {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "inference"])
@pytest.mark.parametrize("placement", ["conv", "norm"])
@each_forward
def test_a_forward_computes_the_same_when_it_is_fused(forward, placement, mode):
    plain, fused = pair(forward, placement=placement)
    x = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)
    for model in (plain, fused):
        model.train(mode == "train")
    for _ in range(2):
        try:
            expected = outcome(plain, x, mode)
        except RuntimeError as error:  # which torch refuses, too
            with pytest.raises(type(error)):
                outcome(fused, x, mode)
            return
        found = outcome(fused, x, mode)
        if forward is FORWARDS["the_norm, not reentrant"] and mode == "train":
            # The norm is recomputed, and moves its statistics again; fused with the ReLU behind the
            # checkpoint, it has no need to be.
            for name in set(found) & {"b.running_mean", "b.running_var", "b.num_batches_tracked"}:
                del found[name], expected[name]
        assert_equal(found, expected, 1e-9)


def test_what_the_plan_expects_is_computed_jointly():
    _, fused = pair(lambda s, x: s.relu(s.b(s.c(x)) + x))
    y = fused(torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64))
    assert (type(y), y.grad_fn.name()) == (torch.Tensor, "AttendThenNormalizeBackward")


def test_a_value_is_a_tensor_in_every_respect():
    plain, fused = (model.eval() for model in pair(keeps_the_convolution))
    x = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)
    for model in (plain, fused):
        model(x)
    y, expected = fused.feature, plain.feature
    assert isinstance(y, torch.Tensor)
    for name in (
        "shape",
        "dtype",
        "device",
        "layout",
        "ndim",
        "requires_grad",
        "is_leaf",
        "nbytes",
    ):
        assert getattr(y, name) == getattr(expected, name), name
    assert (y.stride(), len(y), y.dim(), y.numel()) == (expected.stride(), 2, 4, expected.numel())
    assert y.data_ptr() != 0
    assert y.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
    y, expected = y.detach(), expected.detach()
    for way in (
        lambda y: y.numpy(), lambda y: torch.from_dlpack(y), lambda y: y.tolist(), torch.clone,
        copy.deepcopy, lambda y: pickle.loads(pickle.dumps(y)), lambda y: y[0, 1:],
    ):  # fmt: skip
        torch.testing.assert_close(torch.as_tensor(way(y)), torch.as_tensor(way(expected)))


@torch.no_grad()
def test_what_was_kept_outlives_steps_and_changes_of_its_inputs():
    plain, fused = pair(keeps_the_convolution)
    x = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)
    for model in (plain, fused):
        model(x)
        for tensor in model.state_dict().values():
            tensor.mul_(2)
    assert_equal({"": fused.feature}, {"": plain.feature})
    for model in (plain, fused):
        model.c.attention = None
    assert_equal({"": fused.feature + 0}, {"": plain.feature})


def test_the_numbers_of_a_norm_are_those_of_its_call():
    def calls_twice(s, x):
        y = s.b(s.c(x))
        s.feature = s.b.running_mean.clone()
        s.b.running_mean.zero_()
        return s.relu(y + x) + s.b.num_batches_tracked

    for training in (True, False):
        plain, fused = (model.train(training) for model in pair(calls_twice))
        x = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)
        assert_equal({"": fused(x).detach()}, {"": plain(x).detach()})
        assert_equal({"": fused.feature}, {"": plain.feature})
        assert_equal(fused.state_dict(), plain.state_dict())


def test_a_norm_whose_output_is_not_used_moves_its_statistics():
    plain, fused = pair(lambda s, x: (s.b(s.c(x)), x)[1])
    for model in (plain, fused):
        model(torch.ones(2, CHANNELS, 3, 4, dtype=torch.float64).cumsum(2))
    assert_equal(fused.state_dict(), plain.state_dict())


@pytest.mark.parametrize("ask", [lambda y: y.retain_grad(), lambda y: y.register_hook(print)])
def test_a_gradient_that_is_not_computed_any_more_is_an_error_not_none(ask):
    _, fused = pair(keeps_the_convolution)
    y = fused(torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64))
    with pytest.raises(ModelError, match="the gradient of this tensor is not computed"):
        ask(fused.feature)
    with pytest.raises(ModelError, match="before that use, or call unfuse_attention"):
        torch.autograd.grad(y.sum(), fused.feature)


def test_a_gradient_of_a_value_that_is_used_as_it_is():
    plain, fused = pair(keeps_the_convolution)
    x, found = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64), []
    for model in (plain, fused):
        y = model.c(x)
        found.append(torch.autograd.grad((y * y).sum(), [y, model.c.weight]))
    for a, b in zip(*found, strict=True):
        assert_equal({"": a}, {"": b})


def test_an_error_or_an_interrupt_in_the_middle_leaves_nothing_behind():
    def interrupted(s, x):
        y = s.c(x)
        if s.more:
            raise KeyboardInterrupt
        return F.relu(s.b(y))

    plain, fused = pair(interrupted)
    x = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)
    for model in (plain, fused):
        with pytest.raises(KeyboardInterrupt):
            model(x)
        model.more = False
    assert_equal({"": fused.c(x).detach()}, {"": plain.c(x).detach()})
    assert_equal(outcome(fused, x, "train"), outcome(plain, x, "train"))


def test_a_value_passes_from_one_network_to_another_and_to_another_thread():
    plain, fused = pair(lambda s, x: s.c(x))
    other = copy.deepcopy(fused)
    type(other).forward = lambda s, x: s.c(x)
    x, found = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64), []
    y = fused(x)
    thread = threading.Thread(target=lambda: found.append(other.b(y) + other.c(y)))
    thread.start()
    thread.join()
    expected = plain(x)
    assert_equal({"": found[0].detach()}, {"": (plain.b(expected) + plain.c(expected)).detach()})


class Sub(torch.Tensor):
    """A subclass as a user might write it."""


def test_subclasses_are_computed_apart_and_stay_themselves():
    plain, fused = pair(keeps_the_norm)
    x = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)
    y, expected = fused(x.as_subclass(Sub)), plain(x.as_subclass(Sub))
    assert type(y) is type(expected) is Sub
    assert type(fused.feature) is Sub
    torch.testing.assert_close(y.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


def test_a_shortcut_that_is_a_subclass_is_added_by_itself():
    plain, fused = pair(lambda s, x: s.relu(s.b(s.c(x.as_subclass(torch.Tensor))) + x))
    x = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)
    y, expected = (model(x.as_subclass(Sub)) for model in (fused, plain))
    assert type(y) is type(expected) is Sub
    torch.testing.assert_close(y.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


def test_nothing_holds_a_value_but_who_keeps_it():
    _, fused = pair(keeps_all)
    fused(torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64)).sum().backward()
    for y in fused.feature:
        y.mean()
    del y
    held = [weakref.ref(y) for y in fused.feature]
    assert all(type(ref()) is Deferred for ref in held)
    gc.disable()
    try:
        fused.feature = None
        assert [ref() for ref in held] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_hooks_that_are_there_during_the_forward_alone_under_checkpoints(reentrant, placement):
    plain, fused = pair(checkpoints(all_of_it, reentrant), placement=placement)
    x, found = torch.randn(2, CHANNELS, 3, 4, dtype=torch.float64), []
    for model in (plain, fused):
        seen: list[torch.Tensor] = []
        handles = [
            module.register_forward_hook(lambda m, i, y, s=seen: s.append(y.detach().abs().mean()))
            for module in model.modules()
        ]
        own = x.clone().requires_grad_()
        y = model(own)
        for handle in handles:
            handle.remove()
        y.square().sum().backward()
        found.append({"dx": own.grad, "seen": torch.stack(seen), **gradients(model)})
    assert_equal(found[1], found[0], 1e-9)
