"""Plans are carried out; sites are chosen and counted correctly."""

import warnings

import pytest
import torch
from torch import nn

from composer_attn.errors import NothingAttendedWarning
from composer_attn.functional import attended_modules
from tests import snapshots
from tests.networks import MIN_CHANNELS, NETWORKS
from tests.surgeries import each_network, each_surgery, names


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@each_surgery
@each_network
def test_the_plan_is_what_is_applied(surgery, network):
    model = network.build()
    plan = surgery.plan(model)
    assert names(plan.chosen) == network.sites
    assert surgery.apply(model) == plan
    assert tuple(attended_modules(model)) == network.sites
    assert {type(attention) for attention in attended_modules(model).values()} == {
        surgery.attention
    }


@each_surgery
@each_network
def test_planning_touches_nothing(surgery, network):
    model = network.build()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    before = snapshots.of_all(model, optimizer)
    state = torch.get_rng_state()
    surgery.plan(model, optimizers=optimizer)
    assert snapshots.of_all(model, optimizer) == before
    assert torch.equal(torch.get_rng_state(), state)


@each_surgery
@each_network
def test_planned_parameters_are_those_added(surgery, network):
    model = network.build()
    before = count(model)
    plan = surgery.apply(model)
    attentions = attended_modules(model)
    assert {site.name: site.parameters for site in plan.chosen} == {
        name: count(attention) for name, attention in attentions.items()
    }
    assert all(site.parameters == 0 for site in plan.passed_over)
    assert plan.parameters == count(model) - before > 0


@each_surgery
@each_network
def test_every_convolution_is_a_candidate_once_with_its_channels(surgery, network):
    model = network.build()
    plan = surgery.plan(model)
    convs = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    assert names(plan.sites) == tuple(convs)
    assert [site.channels for site in plan.sites] == [m.out_channels for m in convs.values()]
    assert [site.kind for site in plan.sites] == [type(m).__name__ for m in convs.values()]


@each_surgery
@each_network
def test_applying_twice_changes_nothing_and_says_so(surgery, network):
    model = network.build()
    surgery.apply(model)
    before = snapshots.of_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = surgery.apply(model)
    assert again.chosen == ()
    assert snapshots.of_model(model) == before
    reasons = {site.name: site.reason for site in again.sites}
    assert {reasons[name] for name in network.sites} == {"already attended"}


@each_surgery
def test_another_attention_is_not_added_on_top(surgery):
    model = NETWORKS["resnet"].build()
    surgery.apply(model, include="layer4.*")
    first = attended_modules(model)
    plan = surgery.apply(model, gate="tanh")
    assert not set(names(plan.chosen)) & set(first)
    assert set(first) | set(names(plan.chosen)) == set(NETWORKS["resnet"].sites)
    assert all(attended_modules(model)[name] is first[name] for name in first)


@each_surgery
def test_passed_over_sites_say_why(surgery):
    model = NETWORKS["own_attention"].build()
    model.append(nn.Conv2d(8, 32, 1)).append(nn.Conv2d(32, 64, 1))
    plan = surgery.plan(
        model, include=["[0-3]*"], exclude="3", filter_fn=lambda name, module: False
    )
    assert {site.name: site.reason for site in plan.sites} == {
        "0": "filter_fn said no",
        "1.fc1": "inside SqueezeExcitation '1'",
        "1.fc2": "inside SqueezeExcitation '1'",
        "2": f"fewer channels than min_channels={MIN_CHANNELS}",
        "3": "in exclude",
        "4": "not in include",
    }


@each_surgery
def test_min_channels_is_the_least_number_of_output_channels(surgery):
    model = nn.Sequential(nn.Conv2d(64, 15, 1), nn.Conv2d(1, 16, 1), nn.Conv2d(64, 17, 1))
    assert names(surgery.plan(model, min_channels=16).chosen) == ("1", "2")
    assert names(surgery.plan(model, min_channels=17).chosen) == ("2",)
    assert names(surgery.plan(model, min_channels=1).chosen) == ("0", "1", "2")


@each_surgery
def test_the_printed_plan_has_a_row_for_each_candidate(surgery):
    plan = surgery.plan(NETWORKS["residual"].build())
    lines = str(plan).splitlines()
    assert lines[0].startswith(f"{surgery.attention.__name__}: 2 of 3 candidates chosen, ")
    assert [line.split()[0] for line in lines[2:]] == ["stem", "branches.a", "shortcut.0"]
    assert [line.split()[4] for line in lines[2:]] == ["no:", "yes", "yes"]


@each_surgery
@pytest.mark.parametrize(
    "model", [nn.Linear(3, 200), nn.Conv2d(3, 8, 1), nn.Sequential(), nn.ConvTranspose2d(3, 256, 1)]
)
def test_nothing_to_attend_is_a_warning_with_the_plan(surgery, model):
    before = snapshots.of_model(model)
    with pytest.warns(
        NothingAttendedWarning, match="nothing was attended: .*\n.*: 0 of "
    ) as caught:
        plan = surgery.apply(model)
    assert plan.chosen == ()
    assert str(plan) in str(caught[0].message)
    assert snapshots.of_model(model) == before


@each_surgery
def test_the_warning_points_at_the_callers_line(surgery):
    with pytest.warns(NothingAttendedWarning) as caught:
        surgery.applying(nn.Linear(2, 2))
    assert caught[0].filename == __file__
    assert caught[0].filename != surgery.applying.__code__.co_filename


@each_surgery
def test_planning_does_not_warn(surgery):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert surgery.plan(nn.Linear(2, 2)).sites == ()
