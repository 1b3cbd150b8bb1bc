"""Every surgery on a network of every family: plan, apply, train a step, give back, exactly."""

import copy
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn
from torchvision import models

from composer_attn.functional import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    detach_attention,
    plan_eca,
    plan_squeeze_excite,
)
from tests.families.breadth import ROWS, TIMM, TORCHVISION, Row, build, run

SQUEEZE_EXCITE = (plan_squeeze_excite, apply_squeeze_excite, {"latent_channels": 1 / 16})
ECA = (plan_eca, apply_eca, {})
CASES = [
    *((row, "se", *SQUEEZE_EXCITE) for row in ROWS),
    *((row, "eca", *ECA) for row in ROWS[::3]),
    *((row, "norm", plan_eca, apply_eca, {"placement": "norm"}) for row in ROWS[1::3] if row.norm),
]


def of_model(network: nn.Module) -> tuple:
    classes = {name: type(module) for name, module in network.named_modules()}
    return classes, copy.deepcopy(network.state_dict())


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "planning", "applying", "arguments"),
    [pytest.param(row, *rest, id=f"{row.name}-{label}") for row, label, *rest in CASES],
)
def test_it_is_attended_trains_and_is_given_back(row, planning, applying, arguments):
    network = build(row).eval()
    arguments = {"min_channels": row.min_channels, **arguments}
    classes, state = of_model(network)
    parameters = count(network)
    with torch.no_grad():
        before = run(row, network)
    assert all(tensor.numel() and tensor.isfinite().all() for tensor in before)

    plan = planning(network, **arguments)
    assert plan.chosen
    assert applying(network, **arguments) == plan
    assert count(network) == parameters + plan.parameters

    uncalled = train(row, network)
    assert all(any(fnmatchcase(name, p) for p in row.uncalled) for name in uncalled), uncalled
    assert all(any(fnmatchcase(name, p) for name in uncalled) for p in row.uncalled), row.uncalled

    assert len(detach_attention(network.eval())) == len(plan.chosen)
    given_back, now = of_model(network)
    assert given_back == classes
    assert list(now) == list(state)
    buffers = {name for name, _ in network.named_buffers()}
    assert all(torch.equal(now[key], state[key]) for key in state if key not in buffers)
    network.load_state_dict(state)  # batch norms have seen a batch
    with torch.no_grad():
        after = run(row, network)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def train(row: Row, network: nn.Module) -> set[str]:
    """Take the gradients of a step; return the sites that took no part in it."""
    attentions = attended_modules(network)
    called = set()
    hooks = [
        attention.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, attention in attentions.items()
    ]
    outputs = run(row, network.train())
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name in called:
        for parameter in attentions[name].parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for hook in hooks:
        hook.remove()
    return set(attentions) - called
