"""Two ranks with synchronized batch norm compute the same as one on the whole batch."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.functional import (
    apply_eca,
    apply_squeeze_excite,
    fuse_attention,
    unfuse_attention,
)
from composer_attn.ops import attend_then_normalize
from composer_attn.ops.sync_batch_norm import SyncBatchNorm
from tests.fusion.networks import Net
from tests.fusion.own_networks import small
from tests.ops.regions import distance
from tests.ops.test_norm_kinds import ORDERS, Own, random_attention
from tests.other_norms import at_random
from tests.two_ranks import on_two_ranks

SHARES = (slice(0, 3), slice(3, 5))  # the samples of each rank
WHOLE = slice(0, 5)
STEPS = 2


def of_operation(function, norm, attention, share: slice) -> dict:
    """Run an order on a share of the batch twice; return output, gradients and state."""
    torch.manual_seed(0)
    for _ in range(STEPS):
        given = (torch.randn(5, 6, 4, 3, dtype=torch.float64) + mean for mean in (1, 0, 0))
        x, y, dy = (each[share].clone().requires_grad_() for each in given)
        parameters = [*norm.parameters(), *attention.parameters()]
        output = function(x, y, norm, attention)
        found = torch.autograd.grad(output, [x, y, *parameters], dy, allow_unused=True)
    return {
        "maps": [output.detach(), *found[:2]],
        "parameters": found[2:],
        "buffers": list(norm.buffers()),
    }


def of_network(model: nn.Module, share: slice) -> dict:
    """Run a network on a share of the batch twice; return output, gradients and state."""
    torch.manual_seed(0)
    for _ in range(STEPS):
        x = torch.randn(5, 3, 9, 7, dtype=torch.float64)[share].clone().requires_grad_()
        model.zero_grad()
        output = model(x)
        weight = torch.linspace(-1, 2, 5 * output[0].numel(), dtype=x.dtype)
        (output * weight.view(5, *output.shape[1:])[share]).sum().backward()
    return {
        "maps": [output.detach(), x.grad],
        "parameters": [p.grad for p in model.parameters()],
        "buffers": list(model.buffers()),
    }


def modules(kind) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return at_random(nn.BatchNorm2d(6).double()), random_attention(kind)


NETWORKS = {
    "SE after convolutions": (Net, apply_squeeze_excite, {"min_channels": 8}),
    "ECA after norms": (Net, apply_eca, {"min_channels": 8, "placement": "norm"}),
    "its own attention": (small, None, {}),
}


def network(name: str, convert: Callable = lambda model: model) -> nn.Module:
    """Build a network, convert its norms, then attend it."""
    torch.manual_seed(2)
    build, surgery, options = NETWORKS[name]
    model = convert(at_random(build()).double())
    if surgery is not None:
        surgery(model, **options)
    return model


TORCHS = nn.SyncBatchNorm.convert_sync_batchnorm


def ours(model: nn.Module) -> nn.Module:
    """Convert to norms that can be computed by themselves on CPU, which torch's cannot."""
    for module in TORCHS(model).modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = SyncBatchNorm
    return model


def synchronized(name: str, way: str) -> nn.Module:
    model = network(name, ours if way == "ours" else TORCHS)
    if way == "fused":
        fuse_attention(model, "reference", norms=True)
    return model


KINDS = {"SE": SqueezeExcitation, "own": Own}
CASES = [(order, *of) for order in ORDERS
         for of in (("SE", "reference"), ("SE", "cpp"), ("own", "reference"))]  # fmt: skip


def all_of(rank: int) -> dict:
    """Compute everything on one of two ranks."""
    found = {}
    for order, kind, backend in CASES:
        norm, attention = modules(KINDS[kind])
        norm = TORCHS(norm)
        function = partial(ORDERS[order][1], b=backend)
        found[order, kind, backend] = of_operation(function, norm, attention, SHARES[rank])
    for name in NETWORKS:
        for way in ("fused", "ours"):
            found[name, way] = of_network(synchronized(name, way), SHARES[rank])
    norm, attention = modules(SqueezeExcitation)
    x = of_size(rank).requires_grad_()
    y = attend_then_normalize(x, attention, TORCHS(norm), activation="silu")
    found["sizes"] = y.detach(), torch.autograd.grad(y.square().sum(), x)[0]
    single = SyncBatchNorm(6).double()
    found["single"] = single(torch.full((1, 6, 1, 1), float(rank), dtype=torch.float64))
    found["variance"] = single.running_var
    return found


def of_size(rank: int) -> torch.Tensor:
    """Images of another size on each rank."""
    torch.manual_seed(4)
    return torch.randn(2, 6, 3 + 2 * rank, 4, dtype=torch.float64)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(all_of, tmp_path_factory.mktemp("ranks"))


def compare(found: list[dict], expected: dict) -> None:
    """Compare two ranks with the whole batch: parts of maps, sums of gradients, equal buffers."""
    for number, value in enumerate(expected["maps"]):
        if value is not None:
            joined = torch.cat([each["maps"][number] for each in found])
            assert distance(joined, value) < 1e-12
    for number, value in enumerate(expected["parameters"]):
        if value is not None:
            assert distance(sum(each["parameters"][number] for each in found), value) < 1e-12
    for number, value in enumerate(expected["buffers"]):
        for each in found:
            assert distance(each["buffers"][number], value) < 1e-12


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_two_ranks_agree_with_the_whole_batch_on_one(case, ranks):
    order, kind, _ = case
    expected = of_operation(ORDERS[order][0], *modules(KINDS[kind]), WHOLE)
    compare([each[case] for each in ranks], expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["fused", "ours"])
def test_networks_on_two_ranks_agree_with_the_whole_batch_on_one(name, way, ranks):
    compare([each[name, way] for each in ranks], of_network(network(name), WHOLE))


def test_images_of_another_size_on_each_rank(ranks):
    norm, attention = modules(SqueezeExcitation)
    inputs = [of_size(rank).requires_grad_() for rank in (0, 1)]
    parts = [attention(x).transpose(0, 1).flatten(1) for x in inputs]
    norm = nn.BatchNorm1d(6).double().requires_grad_(False)
    norm.load_state_dict(modules(SqueezeExcitation)[0].state_dict())
    # As positions of one sample, values of both sizes are normalized together.
    joined = nn.functional.silu(norm(torch.cat(parts, 1)[None]))[0]
    gradients = torch.autograd.grad(joined.square().sum(), inputs)
    outputs = joined.split([len(part[0]) for part in parts], 1)
    for found, x, y, dx in zip(ranks, inputs, outputs, gradients, strict=True):
        expected = y.unflatten(1, (2, *x.shape[2:])).transpose(0, 1)
        assert distance(found["sizes"][0], expected) < 1e-12
        assert distance(found["sizes"][1], dx) < 1e-12


def test_one_value_on_each_rank_is_enough(ranks):
    found = torch.cat([each["single"].detach() for each in ranks]).flatten(1)
    torch.testing.assert_close(
        found, torch.tensor([[-1.0], [1]]).expand(2, 6).double(), atol=1e-4, rtol=0
    )
    for each in ranks:  # unbiased: 0.5
        torch.testing.assert_close(each["variance"], torch.full((6,), 0.9 + 0.1 * 0.5).double())


def test_the_same_keys_and_modules_after_undoing():
    for name in NETWORKS:
        model = network(name, TORCHS)
        before, kinds = model.state_dict(), [type(m) for m in model.modules()]
        state = copy.deepcopy(before)
        plan = fuse_attention(model, "reference", norms=True)
        assert plan.fused
        assert not plan.alone
        after = model.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(after[key], state[key]) for key in state)
        unfuse_attention(model)
        assert [type(m) for m in model.modules()] == kinds
