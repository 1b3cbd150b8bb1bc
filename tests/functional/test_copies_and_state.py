"""Copies, whole-model files and state dicts, before surgery and after."""

import copy

import pytest
import torch

from composer_attn.functional import attended_modules, detach_attention
from tests import snapshots
from tests.networks import Shared
from tests.surgeries import attention_keys, each_network, each_surgery


def through_a_file(model, path):
    torch.save(model, path)
    return torch.load(path, weights_only=False)


CLONES = {"deepcopy": lambda model, path: copy.deepcopy(model), "file": through_a_file}
each_clone = pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)


@each_surgery
@each_network
@each_clone
def test_copies_compute_the_same_and_can_be_detached(surgery, network, clone, tmp_path):
    model, x = network.build().eval(), network.batch()
    plain = copy.deepcopy(model)
    surgery.apply(model)
    duplicate = clone(model, tmp_path / "model.pt")
    assert torch.equal(duplicate(x), model(x))
    assert tuple(attended_modules(duplicate)) == network.sites
    assert not {id(p) for p in duplicate.parameters()} & {id(p) for p in model.parameters()}
    detach_attention(duplicate)
    assert torch.equal(duplicate(x), plain(x))
    assert tuple(attended_modules(model)) == network.sites


@each_surgery
@each_clone
def test_copies_of_shared_modules_stay_shared(surgery, clone, tmp_path):
    model = Shared()
    surgery.apply(model)
    duplicate = clone(model, tmp_path / "model.pt")
    assert duplicate.second is duplicate.first
    assert type(duplicate.first) is type(model.first)


@each_surgery
@each_network
def test_state_dicts_gain_attention_keys_and_keep_all_others(surgery, network):
    model = network.build()
    before = model.state_dict()
    surgery.apply(model)
    after = model.state_dict()
    gained = attention_keys(after) - attention_keys(before)
    assert set(after) == set(before) | gained
    assert set(before).isdisjoint(gained)
    assert [key for key in after if key in before] == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert {key.split("attention")[0].removesuffix(".") for key in gained} >= set(network.sites)


@each_surgery
@each_network
def test_names_of_parameters_and_of_the_state_dict_agree(surgery, network):
    model = network.build()
    surgery.apply(model)
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    assert named == set(model.state_dict())


@each_surgery
@each_network
@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_loads_into_an_attended_network(surgery, network, assign):
    checkpoint = network.build().state_dict()
    model = network.build()
    surgery.apply(model)
    result = model.load_state_dict(checkpoint, strict=False, assign=assign)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) == set(model.state_dict()) - set(checkpoint)
    assert set(result.missing_keys) <= attention_keys(model.state_dict())
    assert all(torch.equal(model.state_dict()[key], checkpoint[key]) for key in checkpoint)


@each_surgery
@each_network
def test_a_plain_checkpoint_gives_the_same_network_before_or_after_surgery(surgery, network):
    checkpoint, x = network.build().state_dict(), network.batch()
    loaded_before, loaded_after = network.build().eval(), network.build().eval()
    loaded_before.load_state_dict(checkpoint)
    for model in (loaded_before, loaded_after):
        torch.manual_seed(1)
        surgery.apply(model)
    loaded_after.load_state_dict(checkpoint, strict=False)
    assert torch.equal(loaded_before(x), loaded_after(x))


@each_surgery
@each_network
def test_an_attended_checkpoint_loads_into_an_attended_network_strictly(surgery, network, tmp_path):
    source, target, x = network.build().eval(), network.build().eval(), network.batch()
    for model in (source, target):
        surgery.apply(model)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(target(x), source(x))
    assert snapshots.frozen(target.state_dict()) == snapshots.frozen(source.state_dict())
