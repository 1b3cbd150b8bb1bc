"""How regions of norm, activation and attention behave as part of a graph, and in 16 bits."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from composer_attn.ops import attend_then_normalize
from composer_attn.ops.activations import ACTIVATIONS
from tests.ops import regions
from tests.ops.activated_regions import PARTS, build, results
from tests.ops.regions import SMALL, distance, draw

each_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])
each_parts = pytest.mark.parametrize("parts", PARTS)
each_training = pytest.mark.parametrize("training", [True, False])
TINY = (2, 3, 3, 2)


@each_backend
@each_parts
@each_training
@pytest.mark.parametrize("activation", ["silu", "elu", "gelu_tanh"])
def test_gradcheck(backend, parts, training, activation):
    site = build(TINY, activation, parts=parts, training=training, momentum=0.0)
    x, shortcut = (draw(TINY, mean=0).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, s: site.joint(x, s, backend), (x, shortcut))
    for parameter in site.parameters():
        assert torch.autograd.gradcheck(lambda _: site.joint(x, None, backend), (parameter,))


def kept(function, x) -> int:
    """Count the bytes that a function keeps for backward, parameters aside."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)
    return sum(storages.values())


@each_backend
@each_parts
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_the_input_alone_is_kept_and_numbers(backend, parts, activation):
    shape = (2, 64, 28, 28)
    site = build(shape, activation, "two", parts, torch.float32)
    x, numbers = draw(shape, torch.float32).requires_grad_(), 2 * 64 * 4
    one_map = x.numel() * x.element_size()
    assert one_map <= kept(lambda x: site.joint(x, None, backend), x) <= one_map + 12 * numbers
    # Torch keeps all three, or two where nothing comes before or after.
    if activation == "silu":
        assert kept(site.plain, x) >= (3 if parts == "norm_attention" else 2) * one_map


@each_backend
@each_parts
def test_without_gradients_the_output_is_the_same(backend, parts):
    site = build(SMALL, parts=parts, momentum=0.0)
    x = draw(SMALL)
    expected = site.joint(x.requires_grad_(), None, backend)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(site.joint(x, None, backend), expected)


@each_backend
@each_parts
def test_frozen_parts_get_no_gradient_and_the_others_theirs(backend, parts):
    site, x, dy = build(SMALL, parts=parts), draw(SMALL), draw(SMALL)
    expected = torch.autograd.grad(site.plain(x), site.parameters(), dy)
    found = torch.autograd.grad(site.joint(x, None, backend), site.parameters(), dy)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for parameter in site.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(site.plain(x), x, dy)
    (found,) = torch.autograd.grad(site.joint(x, None, backend), x, dy)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@each_parts
def test_backward_twice_and_no_second_derivative(parts):
    site, x, dy = build(SMALL, parts=parts), draw(SMALL).requires_grad_(), draw(SMALL)
    y = site.joint(x, None, "cpp")
    first = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x, dy, retain_graph=True)[0], first)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@each_parts
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(parts, reentrant):
    site, x, dy = build(SMALL, parts=parts, momentum=0.0), draw(SMALL), draw(SMALL)
    expected = torch.autograd.grad(site.joint(x.requires_grad_(), None, "cpp"), x, dy)[0]
    checkpoint(site.joint, x, None, "cpp", use_reentrant=reentrant).backward(dy)
    assert torch.equal(x.grad, expected)


@each_parts
@each_backend
def test_gradients_in_batches(parts, backend):
    site, x = build(SMALL, parts=parts, shortcut=True), draw(SMALL).requires_grad_()
    y = site.joint(x, draw(SMALL).requires_grad_(), backend)
    wanted, many = [x, *site.parameters()], torch.randn(3, *SMALL, dtype=x.dtype)
    single = [torch.autograd.grad(y, wanted, dy, retain_graph=True) for dy in many]
    batch = torch.autograd.grad(y, wanted, many, is_grads_batched=True, retain_graph=True)
    for together, *each in zip(batch, *single, strict=True):
        torch.testing.assert_close(together, torch.stack(each), rtol=1e-11, atol=1e-11)
    of_x = torch.func.vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])
    torch.testing.assert_close(of_x(many), batch[0], rtol=1e-11, atol=1e-11)


@each_backend
@pytest.mark.parametrize("own", [False, True])
def test_gradients_in_batches_through_an_activation_at_the_end(backend, own):
    case, x = regions.build(SMALL), draw(SMALL).requires_grad_()
    if own:
        case.attention.logits_by_hand = lambda: None
    y = attend_then_normalize(x, case.attention, case.norm, backend, activation="silu")
    wanted, many = [x, *case.parameters()], torch.randn(3, *SMALL, dtype=x.dtype)
    single = [torch.autograd.grad(y, wanted, dy, retain_graph=True) for dy in many]
    batch = torch.autograd.grad(y, wanted, many, is_grads_batched=True, retain_graph=True)
    for together, *each in zip(batch, *single, strict=True):
        torch.testing.assert_close(together, torch.stack(each), rtol=1e-11, atol=1e-11)


@each_parts
@each_training
def test_transforms_see_plain_operations(parts, training):
    site = build(SMALL, "mish", "two", parts, training=training, track_running_stats=False)
    x = draw(SMALL)
    value = torch.func.grad(lambda x: site.joint(x, None, "cpp").square().sum())(x)
    x.requires_grad_()
    expected = torch.autograd.grad(site.plain(x).square().sum(), x)[0]
    torch.testing.assert_close(value, expected)
    x = x.detach()
    _, tangent = torch.func.jvp(lambda x: site.joint(x, None, "cpp"), (x,), (torch.ones_like(x),))
    _, right = torch.func.jvp(site.plain, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, right, rtol=1e-10, atol=1e-10)


@each_parts
@each_training
@pytest.mark.parametrize("attention", ["two", "se"])
def test_the_whole_compiles_as_one_graph(parts, training, attention):
    site = build(SMALL, "hardswish", attention, parts, training=training, shortcut=True)
    other = copy.deepcopy(site)
    inputs = [draw(SMALL) for _ in range(3)]
    expected = results(site, site.plain, *inputs)
    compiled = torch.compile(other.joint, fullgraph=True, backend="aot_eager")
    found = results(other, lambda x, shortcut: compiled(x, shortcut, "auto"), *inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-11)


SHAPE = (4, 37, 9, 9)


@each_backend
@each_parts
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "map alone"])
def test_bfloat16_is_as_near_as_plain_torch(backend, parts, last, activation, whole):
    """A model in bfloat16; and a map in bfloat16 under autocast, with parameters in float32."""
    half = torch.bfloat16
    site = build(SHAPE, activation, parts=parts, dtype=half if whole else torch.float32)
    x, dy = draw(SHAPE, half, last, mean=0), draw(SHAPE, half, last, mean=0)
    exact, other = copy.deepcopy(site), copy.deepcopy(site)
    for module in (exact.norm, exact.attention):
        _ = module and module.double()

    def joint(x, shortcut):
        return other.joint(x, shortcut, backend)

    right = results(exact, exact.plain, x.double(), None, dy.double())
    with torch.autocast("cpu", half, enabled=not whole):
        expected = results(site, site.plain, x, None, dy)
        found = results(other, joint, x, None, dy)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        allowed = 1.5 * distance(value, right[name]) + torch.finfo(half).eps
        assert distance(found[name], right[name]) <= allowed, name


@each_parts
@pytest.mark.parametrize("last", [False, True])
def test_two_runs_are_bit_equal_whatever_the_number_of_threads(parts, last):
    shape = (3, 70, 35, 9)
    site, states = build(shape, parts=parts, dtype=torch.float32), []
    x, dy = (draw(shape, torch.float32, last) for _ in range(2))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            other = copy.deepcopy(site)
            states.append(results(other, lambda x, s: other.joint(x, s, "cpp"), x, None, dy))  # noqa: B023
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
