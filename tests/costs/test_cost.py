"""What a plan says its attentions cost, against hand-written formulas and measurements."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from composer_attn.functional import apply_eca, apply_squeeze_excite, plan_eca, plan_squeeze_excite
from composer_attn.surgery.site_cost import ONE_POSITION
from tests import snapshots
from tests.networks import NETWORKS, Shared
from tests.surgeries import each_network, each_surgery, names


def kept_for_backward(network: nn.Module, *arguments) -> int:
    """Measure, on real tensors, the bytes of all storages that autograd saves."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor  # alive, so that no address comes twice

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(*arguments)
    del output
    return sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in own)


def macs(network: nn.Module, *arguments) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*arguments)
    return counter.get_total_flops() // 2


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def check_totals(plan, network, attend, *arguments):
    """Compare a plan's totals, and the sums over its sites, with the attended network itself."""
    network.eval()
    for cost in (plan.plain, plan.attended):
        assert cost.parameters == count(network)
        assert cost.macs == macs(network, *arguments)
        assert cost.activation_bytes == kept_for_backward(network, *arguments)
        if cost is plan.plain:
            attend(network)
    costs = [site.cost for site in plan.sites]
    plain, attended = plan.plain, plan.attended
    assert attended.parameters - plain.parameters == sum(site.parameters for site in plan.sites)
    assert attended.macs - plain.macs == sum(cost.macs for cost in costs)
    extra = sum(cost.activation_bytes for cost in costs)
    assert attended.activation_bytes - plain.activation_bytes == extra


@each_network
@each_surgery
def test_totals_are_those_measured_on_the_attended_network(network, surgery):
    model, x = network.build(), network.batch()
    plan = surgery.plan(model, example=x)
    assert names(plan.chosen) == network.sites
    check_totals(plan, model, surgery.apply, x)


@pytest.mark.parametrize("placement", ["conv", "norm", "residual", "pre", "post", "identity"])
def test_totals_are_those_measured_at_every_placement(placement):
    model = NETWORKS["resnet"].build()
    x = torch.randn(2, 3, 64, 64)
    arguments = {"min_channels": 64, "placement": placement}
    plan = plan_eca(model, **arguments, example=x)
    assert plan.chosen
    assert all(site.cost.macs > 0 for site in plan.chosen)
    check_totals(plan, model, lambda m: apply_eca(m, **arguments), x)


def test_the_shortcut_of_a_block_without_one_has_the_size_of_the_block_s_input():
    plan = plan_eca(
        NETWORKS["resnet"].build(),
        min_channels=64,
        placement="identity",
        example=torch.randn(2, 3, 64, 64),
    )
    # Only the first block has no module on its shortcut.
    assert {site.name: site.cost.sizes for site in plan.chosen} == {
        "layer1.0.downsample": ((16, 16),),
        "layer2.0.downsample.1": ((8, 8),),
        "layer3.0.downsample.1": ((4, 4),),
        "layer4.0.downsample.1": ((2, 2),),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_site_costs_what_the_formulas_say(dtype):
    n, c, latent, h, w = 3, 32, 8, 10, 12
    model = nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.BatchNorm2d(c)).to(dtype)
    x = torch.randn(n, 3, h, w, dtype=dtype)
    arguments = {"min_channels": 1, "example": x}
    (se,) = plan_squeeze_excite(model, latent, **arguments).sites
    assert (se.cost.sizes, se.cost.calls) == (((h, w),), 1)
    assert (se.cost.sized_by, se.cost.width) == ("latent_channels", latent)
    assert se.cost.macs == n * (c * latent + latent * c)
    # The rescaled map; the means, the hidden layer behind its ReLU, the scales.
    assert se.cost.activation_bytes == dtype.itemsize * n * (c * h * w + c + latent + c)
    (eca,) = plan_eca(model, 5, **arguments).sites
    assert (eca.cost.sized_by, eca.cost.width) == ("kernel_size", 5)
    assert eca.cost.macs == n * c * 5
    # The rescaled map, the means, the scales.
    assert eca.cost.activation_bytes == dtype.itemsize * n * (c * h * w + c + c)


def test_shares_are_of_the_network_with_all_attentions():
    model = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.Conv2d(16, 16, 1, bias=False))
    plan = plan_squeeze_excite(model, 4, min_channels=1, example=torch.randn(1, 3, 4, 4))
    assert plan.attended.parameters == 3 * 16 + 16 * 16 + 2 * 128
    assert plan.attended.macs == 16 * (3 * 16 + 16 * 16) + 2 * 128
    for site in plan.sites:
        assert site.cost.parameters_share == 128 / plan.attended.parameters
        assert site.cost.macs_share == 128 / plan.attended.macs
        kept = site.cost.activation_bytes
        assert site.cost.activation_share == kept / plan.attended.activation_bytes


def test_resnet_50_has_the_multiply_accumulates_that_torch_counts():
    with torch.device("meta"):
        model, image = torchvision.models.resnet50(), torch.empty(1, 3, 224, 224)
    plan = plan_squeeze_excite(model, example=image)
    assert plan.plain.macs == 4_089_184_256
    # 46 sites, each a matrix to 64 latent channels and one back.
    added = sum(2 * 64 * site.channels for site in plan.chosen)
    assert plan.attended.macs == 4_089_184_256 + added == 4_092_526_592
    assert (plan.plain.parameters, plan.attended.parameters) == (25_557_032, 28_899_368)


def test_a_batch_that_no_memory_would_hold_costs_nothing():
    image = torch.zeros(1, 1, 1, 1).expand(4096, 3, 224, 224)
    model = torchvision.models.resnet18()
    plan = plan_eca(model, example=image)
    one = plan_eca(model, example=image[:1])
    assert plan.plain.macs == 4096 * one.plain.macs
    assert plan.plain.activation_bytes > 50 * 2**30
    assert plan.attended.parameters == count(model) + plan.parameters


def test_a_model_on_the_meta_device_costs_what_it_would_on_a_cpu():
    x = torch.randn(2, 3, 32, 32)
    plans = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            plans.append(plan_eca(NETWORKS["resnet"].build(), example=x.to(device)))
    assert plans[0] == plans[1]
    assert plan_eca(NETWORKS["resnet"].build(), example=x.to("meta")) == plans[0]


def test_frozen_layers_keep_less():
    model = NETWORKS["resnet"].build()
    whole = plan_eca(model, example=torch.randn(2, 3, 32, 32))
    model.layer1.requires_grad_(False)
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    x = torch.randn(2, 3, 32, 32)
    plan = plan_eca(model, example=x)
    assert plan.plain.activation_bytes < whole.plain.activation_bytes
    check_totals(plan, model, apply_eca, x)


def test_calls_of_a_shared_convolution_are_counted_each():
    model = Shared()
    plan = plan_eca(model, 3, 16, example=torch.randn(2, 3, 8, 8))
    stem, shared = plan.sites
    assert stem.notes == ()
    assert shared.cost.sizes == ((8, 8), (8, 8))
    assert shared.cost.macs == 2 * stem.cost.macs == 2 * 2 * 16 * 3
    assert "called 2 times in one forward pass, at 8x8" in shared.notes


class _Outer(nn.Module):
    """Branches that are called for some inputs only, and several outputs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.classes = nn.Conv2d(16, 18, 1)
        self.boxes = nn.Conv2d(16, 36, 1)
        self.unused = nn.Conv2d(16, 16, 1)

    def forward(self, x, *, scale: float = 2.0):
        x = self.norm(self.body(x)).relu()
        boxes = [self.boxes(level).flatten(2) for level in (x, x[..., ::2, ::2])]
        return {"classes": self.classes(x).sigmoid() * scale, "boxes": torch.cat(boxes, 2)}


def test_prediction_layers_and_layers_never_called_are_pointed_out():
    plan = plan_eca(_Outer(), min_channels=17, example=torch.randn(2, 3, 8, 8))
    output = "its output is the network's output: consider exclude"
    assert {site.name: site.notes for site in plan.sites} == {
        "body": (),
        "classes": (output,),
        "boxes": ("called 2 times in one forward pass, at 8x8, 4x4", output),
        "unused": ("not called on this example",),
    }
    unused = plan.sites[-1].cost
    assert (unused.sizes, unused.macs, unused.activation_bytes) == ((), 0, 0)
    assert str(plan).endswith("unused: not called on this example")


def test_a_classifier_s_last_convolution_is_not_its_output():
    plan = plan_eca(NETWORKS["resnet"].build(), example=torch.randn(2, 3, 64, 64))
    assert all(site.notes == () for site in plan.sites)


def test_sites_of_one_position_are_pointed_out():
    plan = plan_eca(NETWORKS["resnet"].build(), example=torch.randn(2, 3, 32, 32))
    single = {site.name for site in plan.sites if set(site.cost.sizes) == {(1, 1)}}
    assert single
    assert {site.name for site in plan.sites if site.notes == (ONE_POSITION,)} == single
    assert all(site.notes == () for site in plan.sites if site.name not in single)


class _Looks(nn.Module):
    """Goes by its values, as detection networks do; keeps a count, and draws at random."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)
        self.more = nn.Conv2d(16, 16, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x = self.conv(x) + 0 * torch.randn(())
        means = x.mean((0, 1, 3))
        return self.more(x[:, :, means > means.mean()])


@pytest.mark.parametrize("build", [_Looks, NETWORKS["resnet"].build])
def test_model_example_and_random_state_stay_as_they_were(build):
    model = build().train()
    next(model.children()).eval()
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 3, 32, 32)
    before, image, state = snapshots.of_model(model), x.clone(), torch.get_rng_state()
    plan = plan_eca(model, min_channels=1, example=x)
    assert plan.attended.activation_bytes > plan.plain.activation_bytes
    assert snapshots.of_model(model) == before
    assert torch.equal(x, image)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    handle.remove()


def test_a_forward_that_looks_at_values_goes_the_same_way_attended():
    x = torch.randn(2, 3, 64, 64)
    plan = plan_eca(_Looks(), min_channels=1, example=x)
    rows = plan.sites[1].cost.sizes[0][0]
    assert 0 < rows < 64
    assert plan.plain.macs == 2 * 64 * (64 * 3 * 16 + rows * 16 * 16)
    assert plan.attended.macs - plan.plain.macs == 2 * (2 * 16 * 3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_s_mode_makes_no_difference(mode):
    model, x = NETWORKS["resnet"].build(), torch.randn(2, 3, 32, 32)
    expected = plan_eca(model, example=x)
    with mode():
        assert plan_eca(model, example=x) == expected


def test_an_attended_network_is_its_own_plain_network():
    model, x = NETWORKS["resnet"].build(), torch.randn(2, 3, 32, 32)
    plan = plan_eca(model, include="layer4.*", example=x)
    apply_eca(model, include="layer4.*")
    more = plan_squeeze_excite(model, example=x)
    assert more.plain == plan.attended
    check_totals(more, model, apply_squeeze_excite, x)


def test_where_attention_is_replaced_the_totals_are_those_of_the_two_networks():
    model = torchvision.models.mobilenet_v3_small(num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    plan = plan_eca(model, replace=True, example=x)
    assert [site.cost.sizes for site in plan.chosen][:2] == [((8, 8),), ((2, 2),)]
    assert (plan.plain.parameters, plan.plain.macs) == (count(model), macs(model, x))
    apply_eca(model, replace=True)
    assert (plan.attended.parameters, plan.attended.macs) == (count(model), macs(model, x))
    assert plan.attended.parameters < plan.plain.parameters
