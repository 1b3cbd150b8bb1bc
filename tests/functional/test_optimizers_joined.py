"""New parameters join the group that holds their site's weight, in place and by name."""

import pytest
import torch
from composer.models import ComposerClassifier
from torch import nn

from composer_attn.functional import attended_modules
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import attention_keys, each_network, each_surgery, names


def decay_and_no_decay(model, named=False):
    """Split parameters as training recipes do; the stem's convolution alone goes without decay."""
    pairs = list(model.named_parameters())
    without = [(n, p) for n, p in pairs if p.dim() <= 1 or n.split(".")[0] in ("stem", "conv1")]
    with_decay = [(n, p) for n, p in pairs if all(p is not other for _, other in without)]
    if not named:
        with_decay, without = ([p for _, p in group] for group in (with_decay, without))
    return [
        {"params": with_decay, "weight_decay": 0.1, "lr": 0.5},
        {"params": without, "weight_decay": 0.0, "lr": 0.25},
    ]


def place_of(optimizers, parameter):
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    found = [i for i, group in enumerate(groups) for p in group["params"] if p is parameter]
    assert len(found) == 1
    return found[0]


def assert_beside_their_weights(model, optimizers):
    for name, attention in attended_modules(model).items():
        home = place_of(optimizers, model.get_submodule(name).weight)
        for parameter in attention.parameters():
            assert place_of(optimizers, parameter) == home


def assert_names_agree(model, optimizer):
    expected = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        found = zip(group["params"], group["param_names"], strict=True)
        assert {id(p): name for p, name in found}.items() <= expected.items()


@each_surgery
@each_network
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_one_group_takes_all(surgery, network, named):
    model = network.build()
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    group = optimizer.param_groups[0]
    listed, old = group["params"], list(group["params"])
    surgery.apply(model, optimizers=optimizer)
    assert optimizer.param_groups == [group]
    assert group["params"] is listed
    assert [id(p) for p in listed[: len(old)]] == [id(p) for p in old]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters()}
    assert len(listed) == len(list(model.parameters()))
    if named:
        assert_names_agree(model, optimizer)


@each_surgery
@pytest.mark.parametrize("key", ["residual", "resnet", "shared"])
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_attention_joins_the_group_of_its_site(surgery, key, named):
    model = NETWORKS[key].build()
    optimizer = torch.optim.SGD(decay_and_no_decay(model, named))
    surgery.apply(model, optimizers=[optimizer])
    assert_beside_their_weights(model, [optimizer])
    if named:
        assert_names_agree(model, optimizer)
    options = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert options == [(0.5, 0.1), (0.25, 0.0)]


@each_surgery
@pytest.mark.parametrize("key", ["residual", "resnet", "shared"])
@pytest.mark.parametrize("collect", [list, tuple, iter])
def test_attention_joins_the_optimizer_of_its_site(surgery, key, collect):
    model = NETWORKS[key].build()
    groups = decay_and_no_decay(model)
    optimizers = [torch.optim.SGD(groups[:1]), torch.optim.AdamW(groups[1:])]
    surgery.apply(model, optimizers=collect(optimizers))
    assert_beside_their_weights(model, optimizers)


@each_surgery
def test_names_keep_the_form_that_the_optimizer_uses(surgery):
    # Built from the bare network, while the surgery sees it as "module" of a ComposerClassifier.
    network = NETWORKS["resnet"].build()
    optimizer = torch.optim.SGD(network.named_parameters(), lr=0.1)
    surgery.apply(ComposerClassifier(network, num_classes=10), optimizers=optimizer)
    assert_names_agree(network, optimizer)
    added = attention_keys(dict.fromkeys(optimizer.param_groups[0]["param_names"]))
    assert added == attention_keys(network.state_dict())


@each_surgery
@pytest.mark.parametrize("index", [0, 1, 2])
def test_param_group_counts_through_all_optimizers_groups(surgery, index):
    model = NETWORKS["residual"].build()
    groups = decay_and_no_decay(model)
    extra = nn.Parameter(torch.zeros(1))
    optimizers = [torch.optim.SGD(groups), torch.optim.SGD([extra], lr=0.1)]
    surgery.apply(model, optimizers=optimizers, param_group=index)
    for attention in attended_modules(model).values():
        assert {place_of(optimizers, p) for p in attention.parameters()} == {index}


@each_surgery
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_a_frozen_backbone_trains_its_attentions_by_one_argument(surgery, named):
    network = NETWORKS["residual"]
    model, x = network.build(), network.batch()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    trained = [(f"head.{name}", p) for name, p in model.head.named_parameters()]
    optimizer = torch.optim.SGD(trained if named else [p for _, p in trained], lr=0.1)
    surgery.apply(model, optimizers=optimizer, param_group=0)
    if named:
        assert_names_agree(model, optimizer)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    (model(x) - 1).square().mean().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {"head.weight", "head.bias"} | attention_keys(start)


@each_surgery
def test_wrappers_that_share_their_groups_count_once(surgery):
    # As Composer's SAM optimizer does with the one it wraps.
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.param_groups = inner.param_groups

    model = NETWORKS["residual"].build()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = Wrapper(inner)
    surgery.apply(model, optimizers=[wrapper, inner])
    assert wrapper.param_groups is inner.param_groups
    listed = [id(p) for p in inner.param_groups[0]["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))


@each_surgery
def test_two_optimizers_of_one_weight_both_take_its_attention(surgery):
    model = NETWORKS["residual"].build()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    surgery.apply(model, optimizers=optimizers)
    for optimizer in optimizers:
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
            id(p) for p in model.parameters()
        }


@each_surgery
@each_network
def test_without_optimizers_none_is_needed(surgery, network):
    model = network.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshots.of_optimizer(optimizer)
    assert names(surgery.apply(model, optimizers=[]).chosen) == network.sites
    assert snapshots.of_optimizer(optimizer) == before
