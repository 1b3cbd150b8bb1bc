"""The simplified EfficientNet: the published counts, block by block, and its two variants."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from composer_attn.errors import ConfigError
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.models.simplified_efficientnet import SimplifiedEfficientNet
from composer_attn.runs.training.build import build_parts
from composer_attn.runs.training.network_cost import count_macs

DENSE = 2_634_117_120
DEPTHWISE = 193_898_304
PUBLISHED = 2_640_261_120

# Of each row of the published table: name, side of the output, and multiply-accumulates by hand:
# output positions x kernel positions x channels in x channels out; a block is the sum of its 1x1,
# 3x3 and 1x1 convolutions.
ROWS = [
    ("stem", 56, 56**2 * 9 * 3 * 16),
    ("blocks.0", 56, 56**2 * (16 * 64 + 9 * 64 * 64 + 64 * 16)),
    ("blocks.1", 56, 56**2 * (16 * 64 + 9 * 64 * 64 + 64 * 24)),
    ("blocks.2", 56, 56**2 * (24 * 96 + 9 * 96 * 96 + 96 * 24)),
    ("blocks.3", 28, 56**2 * 24 * 96 + 28**2 * (9 * 96 * 96 + 96 * 40)),
    ("blocks.4", 28, 28**2 * (40 * 160 + 9 * 160 * 160 + 160 * 40)),
    ("blocks.5", 28, 28**2 * (40 * 160 + 9 * 160 * 160 + 160 * 40)),
    ("blocks.6", 14, 28**2 * 40 * 160 + 14**2 * (9 * 160 * 160 + 160 * 80)),
    ("blocks.7", 14, 14**2 * (80 * 320 + 9 * 320 * 320 + 320 * 80)),
    ("blocks.8", 14, 14**2 * (80 * 320 + 9 * 320 * 320 + 320 * 80)),
    ("blocks.9", 14, 14**2 * (80 * 320 + 9 * 320 * 320 + 320 * 80)),
    ("blocks.10", 7, 14**2 * 80 * 320 + 7**2 * (9 * 320 * 320 + 320 * 160)),
    ("blocks.11", 7, 7**2 * (160 * 640 + 9 * 640 * 640 + 640 * 160)),
    ("blocks.12", 7, 7**2 * (160 * 640 + 9 * 640 * 640 + 640 * 160)),
    ("blocks.13", 7, 7**2 * (160 * 640 + 9 * 640 * 640 + 640 * 160)),
    ("blocks.14", 7, 7**2 * (160 * 640 + 9 * 640 * 640 + 640 * 160)),
    ("blocks.15", 7, 7**2 * (160 * 640 + 9 * 640 * 640 + 640 * 320)),
    ("head", 7, 7**2 * 320 * 1280),
    ("classifier", 1, 1280 * 100),
]  # fmt: skip


@pytest.fixture(scope="module")
def dense():
    return SimplifiedEfficientNet(depthwise=False).eval()


def test_the_multiply_accumulates_are_the_published_ones(dense):
    image = torch.zeros(1, 3, 56, 56)
    assert count_macs(dense, image) == sum(count for *_, count in ROWS) == DENSE
    assert count_macs(SimplifiedEfficientNet(depthwise=True), image) == DEPTHWISE
    # The published table counts the linear layer at all 49 positions before pooling.
    assert DENSE + 48 * 1280 * 100 == PUBLISHED


def test_each_row_of_the_table_has_the_expected_counts_and_shapes(dense):
    counter, sides = FlopCounterMode(display=False), {}
    modules = {name: dense.get_submodule(name) for name, *_ in ROWS}
    hooks = [
        module.register_forward_hook(lambda m, args, out, n=name: sides.update({n: out.shape[-1]}))
        for name, module in modules.items()
        if name != "classifier"
    ]
    with torch.no_grad(), counter:
        dense(torch.zeros(1, 3, 56, 56))
    for hook in hooks:
        hook.remove()
    counted = counter.get_flop_counts()
    found = [
        (name, sides.get(name, 1), sum(counted[f"SimplifiedEfficientNet.{name}"].values()) // 2)
        for name in modules
    ]
    assert found == ROWS


def test_counting_leaves_the_mode_of_every_network_alone(dense):
    image = torch.zeros(1, 3, 32, 32)
    for training in (True, False):
        count_macs(dense.train(training), image)
        assert dense.training is training
    dense.eval()


def test_depthwise_convolutions_mix_no_channels():
    for depthwise in (True, False):
        for block in SimplifiedEfficientNet(depthwise=depthwise).blocks:
            groups = block.expand.out_channels if depthwise else 1
            assert block.spatial.groups == groups


def test_blocks_have_a_shortcut_where_the_shapes_agree(dense):
    having = [i for i, block in enumerate(dense.blocks) if block.has_shortcut]
    assert having == [0, 2, 4, 5, 7, 8, 9, 11, 12, 13, 14]
    block = dense.blocks[4]
    for norm in (block.expand_norm, block.spatial_norm, block.project_norm):
        nn.init.zeros_(norm.weight)
    x = torch.randn(2, 40, 8, 8)
    assert torch.equal(block(x), x)


def choose_expert(network: SimplifiedEfficientNet, expert: int) -> None:
    """Let every sample of every block mix the experts as 1 for one of them, and 0 otherwise."""
    for block in network.blocks:
        nn.init.zeros_(block.routing.weight)
        with torch.no_grad():
            block.routing.bias.fill_(-100.0)
            block.routing.bias[expert] = 100.0


@pytest.mark.parametrize(("expert", "depthwise"), [(0, True), (3, True), (3, False)])
def test_a_conditional_network_that_chooses_one_expert_is_the_plain_network_with_its_kernels(
    expert, depthwise
):
    # In float64, whose sigmoid(100) is exactly 1, and sigmoid(-100) below any rounding.
    conditional = SimplifiedEfficientNet(depthwise=depthwise, experts=4).double().eval()
    plain = SimplifiedEfficientNet(depthwise=depthwise).double().eval()
    choose_expert(conditional, expert)
    state = conditional.state_dict()
    kernels = {
        name: state[name][expert].view(weight.shape) if name.startswith("blocks") and
        weight.ndim == 4 else state[name]
        for name, weight in plain.state_dict().items()
    }  # fmt: skip
    plain.load_state_dict(kernels)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(conditional(x), plain(x), rtol=1e-9, atol=1e-12)
        choose_expert(conditional, 1)
        assert not torch.allclose(conditional(x), plain(x))


def test_each_sample_is_routed_by_itself():
    network = SimplifiedEfficientNet(experts=4).double().eval()
    for block in network.blocks:
        nn.init.normal_(block.routing.weight, std=10)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in x])
        torch.testing.assert_close(network(x), alone, rtol=1e-9, atol=1e-12)


def test_a_conditional_network_learns_its_kernels_and_its_routing():
    network = SimplifiedEfficientNet(num_classes=3, experts=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    labels = torch.tensor([0, 1, 2] * 2)
    x = torch.randn(6, 3, 32, 32) + 3 * torch.eye(3)[labels][:, :, None, None]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    still = [name for name, p in network.named_parameters() if torch.equal(before[name], p)]
    assert still == []


def test_conditional_convolutions_without_timm_ask_for_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    SimplifiedEfficientNet()  # the plain one needs none
    with pytest.raises(ImportError, match=r"pip install 'composer-attn\[timm\]'"):
        SimplifiedEfficientNet(experts=4)
    config = RunConfig(
        model={"name": "simplified_efficientnet", "experts": 4},
        train_dataset={"name": "synthetic"},
        optimizer={"name": "sgd", "lr": 0.1},
    )
    with pytest.raises(ConfigError, match=r"^model: ImportError: conditional convolutions come wi"):
        build_parts(config)
