"""Others build, keep, wrap or reset attended modules: LoRA, parametrizations, Accelerate, and more.

Each of the functions here that stands for another package's code names where it is from.
"""

import copy
import functools
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.errors import ModelError, OptimizerError
from composer_attn.functional import (
    apply_eca,
    attended_modules,
    detach_attention,
    fuse_attention,
    plan_eca,
    unfuse_attention,
)
from tests import snapshots
from tests.elsewhere.networks import APPLYING, Net, at_random, images
from tests.surgeries import train_step

each_attention = pytest.mark.parametrize("applying", APPLYING.values(), ids=APPLYING)


def attended(applying=APPLYING["eca"], **options):
    model = at_random(Net())
    applying(model, **options)
    return model


# --- other modules of an attended module's class


@each_attention
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_an_attended_modules_class_builds_plain_modules(applying, fused, placement):
    model = attended(applying, placement=placement)
    if fused:
        fuse_attention(model, backend="reference")
    conv, norm = type(model.conv)(3, 8, 3), type(model.bn)(8)
    assert type(conv) is nn.Conv2d
    assert type(norm) is nn.BatchNorm2d
    x = images()
    torch.testing.assert_close(
        conv(x), nn.functional.conv2d(x, conv.weight, conv.bias), rtol=0, atol=0
    )
    assert norm(conv(x)).shape == (2, 8, 7, 7)


def test_a_class_without_arguments_builds_plain_modules_too():
    model = attended(placement="post")
    kind = type(model.block)
    assert type(kind(8)) is kind.__mro__[kind.__mro__.index(type(Net().block))]


class LoraConv2d(nn.Module):
    """LoRA on a convolution, as peft/tuners/lora/layer.py writes it."""

    def __init__(self, base_layer, r=2):
        super().__init__()
        self.base_layer = base_layer
        conv_layer = type(base_layer)
        sizes = (base_layer.kernel_size, base_layer.stride, base_layer.padding)
        self.lora_A = conv_layer(base_layer.in_channels, r, *sizes, bias=False)
        self.lora_B = conv_layer(r, base_layer.out_channels, (1, 1), (1, 1), bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x)) * 0.5


@each_attention
def test_lora_on_attended_convolutions(applying):
    model, x = attended(applying), images()
    expected = model(x)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.conv, model.block.conv1 = LoraConv2d(model.conv), LoraConv2d(model.block.conv1)
    assert torch.equal(model(x), expected)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    train_step(model, torch.optim.SGD(model.parameters(), 0.1), x)
    assert not torch.equal(model(x), expected)
    assert len(attended_modules(model)) == 4


def test_an_attended_module_initialized_again_stays_attended():
    model, x = attended(), images()
    model.conv.__init__(3, 8, 3, padding=1)
    assert "conv" in attended_modules(model)
    conv = nn.functional.conv2d(x, model.conv.weight, model.conv.bias, padding=1)
    assert torch.equal(model.conv(x), model.conv.attention(conv))


# --- parametrizations


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


def parametrized(*names):
    model = at_random(Net(bias=True))
    for name in names:
        parametrize.register_parametrization(model.conv, name, Doubled())
    return model


@each_attention
@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("names", [["weight"], ["bias"], ["weight", "bias"]], ids=len)
def test_parametrizations_of_before_the_surgery_are_removed_as_ever(applying, leave, names):
    model, x = parametrized(*names), images()
    applying(model)
    expected = model(x)
    for name in names:
        parametrize.remove_parametrizations(model.conv, name, leave_parametrized=leave)
    assert type(model.conv).__name__ == "AttendedConv2d"
    if not leave:
        with torch.no_grad():
            for name in names:
                getattr(model.conv, name).mul_(2)
    torch.testing.assert_close(model(x), expected)
    detach_attention(model)
    assert type(model.conv) is nn.Conv2d


@pytest.mark.parametrize("removed", [[], ["weight"], ["bias"], ["weight", "bias"]], ids=str)
def test_detaching_keeps_the_parametrizations_that_are_left(removed):
    model, x = parametrized("weight", "bias"), images()
    expected, before = model(x), type(model.conv)
    apply_eca(model, min_channels=8)
    for name in removed:
        parametrize.remove_parametrizations(model.conv, name)
    detach_attention(model)
    torch.testing.assert_close(model(x), expected)
    left = {"weight", "bias"} - set(removed)
    assert parametrize.is_parametrized(model.conv) == bool(left)
    assert all(parametrize.is_parametrized(model.conv, name) for name in left)
    assert type(model.conv) is (before if not removed else type(model.conv))
    for name in left:
        parametrize.remove_parametrizations(model.conv, name)
    assert type(model.conv) is nn.Conv2d
    torch.testing.assert_close(model(x), expected)


def test_a_surgery_undone_gives_a_parametrized_module_its_very_class():
    model = parametrized("weight")
    before = snapshots.of_model(model)
    apply_eca(model, min_channels=8)
    detach_attention(model)
    assert snapshots.of_model(model) == before


def test_copies_of_parametrized_attended_modules_are_their_own():
    model, x = parametrized("weight"), images()
    apply_eca(model, min_channels=8)
    duplicate = copy.deepcopy(model)
    expected = model(x)
    assert torch.equal(duplicate(x), expected)
    detach_attention(duplicate)
    assert torch.equal(model(x), expected)


def test_what_is_parametrized_after_the_surgery_is_undone_first():
    model = parametrized("weight")
    apply_eca(model, min_channels=8)
    parametrize.register_parametrization(model.conv, "bias", Doubled())
    with pytest.raises(ModelError, match="the class of conv was extended after the surgery"):
        detach_attention(model)
    parametrize.remove_parametrizations(model.conv, "bias")
    assert len(detach_attention(model)) == 4


# --- forwards set on instances


def prepared_by_accelerate(model):
    """Wrap the forward as accelerate.Accelerator.prepare_model does for mixed precision."""
    model._original_forward = model.forward
    func = model.forward.__func__

    @functools.wraps(func)
    def forward(self, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return func(self, *args, **kwargs)

    model.forward = MethodType(forward, model)


def hooked_by_accelerate(model):
    """Wrap every module's forward as accelerate.hooks.add_hook_to_module does."""
    for module in model.modules():
        old_forward = module.forward
        module._old_forward = old_forward

        def new_forward(module, *args, **kwargs):
            return module._old_forward(*args, **kwargs)

        module.forward = functools.update_wrapper(
            functools.partial(new_forward, module), old_forward
        )


each_wrapping = pytest.mark.parametrize("wrap", [prepared_by_accelerate, hooked_by_accelerate])


@each_wrapping
@each_attention
@pytest.mark.parametrize("placement", ["conv", "norm", "residual"])
@pytest.mark.parametrize("undo", ["unfuse", "detach", "unfuse, detach"])
def test_forwards_kept_on_instances_compute_what_the_modules_do_now(
    wrap, applying, placement, undo
):
    model, x = at_random(Net()), images()
    plain = model(x)
    applying(model, placement=placement)
    expected = model(x)
    fuse_attention(model, backend="reference")
    wrap(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    if "unfuse" in undo:
        unfuse_attention(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    if "detach" in undo:
        detach_attention(model)
        torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)


def test_a_prepared_network_is_attended_and_fused_like_any_other():
    model, x = at_random(Net()), images()
    plain = copy.deepcopy(model)
    fuse_attention_after = attended(include="conv")
    for network in (model, fuse_attention_after):
        prepared_by_accelerate(network)
    torch.manual_seed(1)
    apply_eca(model, min_channels=8)
    torch.manual_seed(1)
    apply_eca(plain, min_channels=8)
    assert torch.equal(model(x), plain(x))
    fuse_attention(model, backend="reference")
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    detach_attention(model)
    detach_attention(plain)
    torch.testing.assert_close(model(x), plain(x))


def test_sites_whose_forward_was_set_are_refused_by_name():
    model = at_random(Net())
    hooked_by_accelerate(model)
    with pytest.raises(ModelError, match="its forward was replaced on the instance"):
        apply_eca(model, min_channels=8)


# --- reset_parameters


def reset_in_order(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def reset_backwards(model):
    for module in reversed(list(model.modules())):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def reset_holders_of_parameters(model):
    """Reset as FSDP does when it materializes a network: what has parameters of its own."""
    for module in model.modules():
        if module._parameters:
            module.reset_parameters()


RESETS = [
    reset_in_order,
    reset_backwards,
    reset_holders_of_parameters,
    lambda model: model.apply(lambda m: getattr(m, "reset_parameters", lambda: None)()),
]


@each_attention
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("clone", [lambda m: m, copy.deepcopy], ids=["itself", "copy"])
def test_an_identity_start_survives_every_order_of_resets(applying, reset, clone):
    model = at_random(Net())
    applying(model, start="identity")
    model = clone(model)
    for attention in attended_modules(model).values():
        for parameter in attention.parameters():
            nn.init.normal_(parameter)
    reset(model)
    for attention in attended_modules(model).values():
        x = torch.randn(2, attention.channels, 5, 5)
        assert torch.equal(attention(x), x)


def test_a_reset_of_the_papers_start_draws_again():
    attention = SqueezeExcitation(8, 2)
    before = attention.fc2.weight.clone()
    reset_in_order(attention)
    assert not torch.equal(attention.fc2.weight, before)


# --- pruning


def kept(channels=(0, 2, 5)):
    return torch.tensor(channels)


def prune(conv, norm, after, indices):
    conv.weight.data = conv.weight.data[indices]
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data = getattr(norm, name).data[indices]
    norm.num_features = len(indices)
    after.weight.data = after.weight.data[:, indices]


def prune_attention(attention, indices):
    if isinstance(attention, SqueezeExcitation):
        attention.fc1.weight.data = attention.fc1.weight.data[:, indices]
        attention.fc2.weight.data = attention.fc2.weight.data[indices]


@each_attention
@pytest.mark.parametrize("placement", ["conv", "norm"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_attention_follows_pruned_channels(applying, placement, fused):
    model, x, indices = attended(applying, placement=placement), images(), kept()
    block = model.block
    site = block.conv1 if placement == "conv" else block.bn1
    expected = copy.deepcopy(model)
    prune(block.conv1, block.bn1, block.conv2, indices)
    prune_attention(site.attention, indices)
    if fused:
        fuse_attention(model, backend="reference")
    y = model(x)
    assert site.attention.channels == 3
    # The same, written out.
    inside = expected.relu(expected.bn(expected.conv(x)))
    conv1, bn1 = (copy.deepcopy(m) for m in (block.conv1, block.bn1))
    z = conv1(inside) if placement == "conv" else nn.Conv2d.forward(conv1, inside)
    if placement == "conv":
        plain = nn.functional.conv2d(inside, conv1.weight, padding=1)
        torch.testing.assert_close(z, plain * site.attention.excitation(plain)[..., None, None])
    z = nn.functional.batch_norm(z, bn1.running_mean, bn1.running_var, bn1.weight, bn1.bias)
    if placement == "norm":
        z = z * site.attention.excitation(z)[..., None, None]
    end = block.bn2(block.conv2(z.relu())) + block.downsample(inside)
    torch.testing.assert_close(y, model.head(end.relu().mean((2, 3))), rtol=1e-4, atol=1e-5)


def test_attention_whose_layers_were_not_pruned_says_how():
    model = attended(APPLYING["squeeze_excite"])
    prune(model.block.conv1, model.block.bn1, model.block.conv2, kept())
    with pytest.raises(ModelError, match=r"rescales 8 channels, but is given 3.*fc1\.weight"):
        model(images())


@each_attention
def test_torch_pruning(applying):
    pruning = pytest.importorskip("torch_pruning")
    model, x = attended(applying), images()
    conv = model.block.conv1
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    gone = [1, 3, 4, 6, 7]
    graph.get_pruning_group(conv, pruning.prune_conv_out_channels, idxs=gone).prune()
    assert conv.weight.shape[0] == 3
    if isinstance(conv.attention, SqueezeExcitation):
        with pytest.raises(ModelError, match=r"prune the attention's layers with them"):
            model(x)
        return  # it took another attention's layers along: prune before the surgery
    assert model(x).isfinite().all()
    assert conv.attention.channels == 3
    inside = torch.randn(2, 8, 5, 5)
    y = nn.functional.conv2d(inside, conv.weight, padding=1)
    expected = y * conv.attention.excitation(y)[..., None, None]
    torch.testing.assert_close(conv(inside), expected)


# --- layers that are not what they were


class Wrapped(nn.Module):
    """A layer in a wrapper whose weight is no tensor, as of quantized layers."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def weight(self):
        return self.layer.weight

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_wrapped_layers_of_an_attention_are_called(fused):
    model, x = attended(APPLYING["squeeze_excite"]), images()
    expected = model(x)
    if fused:
        fuse_attention(model, backend="reference")
    for attention in attended_modules(model).values():
        attention.fc1, attention.fc2 = Wrapped(attention.fc1), Wrapped(attention.fc2)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


class Integers(nn.Linear):
    """Keeps its weight in integers, as bitsandbytes' Linear8bitLt does."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = layer.weight.detach().abs().max() / 127
        integers = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def test_integer_weights_leave_the_means_what_they_are():
    attention = SqueezeExcitation(8, 4)
    x = torch.randn(2, 8, 5, 5)
    expected = attention(x)
    attention.fc1 = Integers(attention.fc1)
    torch.testing.assert_close(attention(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_dynamic_quantization_of_linear_layers(start, fused):
    model, x = attended(APPLYING["squeeze_excite"], start=start), images()
    expected = model(x)
    if fused:
        fuse_attention(model, backend="reference")
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    attention = small.block.conv1.attention
    assert type(attention.fc1).__module__ == type(attention.fc2).__module__
    assert "quantized" in type(attention.fc2).__module__
    torch.testing.assert_close(small(x), expected, rtol=0.1, atol=0.1)


# --- SGD's fused kernel


@each_attention
@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_sgd_that_has_stepped_takes_new_parameters(applying, nesterov):
    x, states = images(), []
    for fused in (True, False):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(
            model.parameters(), 0.05, momentum=0.9, nesterov=nesterov, fused=fused
        )
        train_step(model, optimizer, x)
        applying(model, optimizers=optimizer)
        for _ in range(3):
            train_step(model, optimizer, x)
        states.append(model.state_dict())
        detach_attention(model, optimizers=optimizer)
        train_step(model, optimizer, x)
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-5)


def test_fused_sgd_with_dampening_is_refused_once_it_has_stepped():
    model, x = Net(), images()
    options = {"momentum": 0.9, "dampening": 0.5, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), 0.05, **options)
    before = copy.deepcopy(model)
    train_step(model, optimizer, x)
    for function in (apply_eca, plan_eca):
        with pytest.raises(OptimizerError, match="apply the surgery before its first step"):
            function(model, min_channels=8, optimizers=optimizer)
    assert attended_modules(model) == {}
    fresh = torch.optim.SGD(before.parameters(), 0.05, **options)
    apply_eca(before, min_channels=8, optimizers=fresh)
    train_step(before, fresh, x)
    train_step(before, fresh, x)


# --- inputs without a batch

SAMPLES = {
    "Conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()), (3, 10), "conv"),
    "Conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 10, 6), "conv"),
    "H equals C": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), (3, 8, 6), "conv"),
    "all equal": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), (3, 8, 8), "conv"),
    "D equals C": (lambda: nn.Sequential(nn.Conv3d(3, 8, 1), nn.ReLU()), (3, 8, 6, 5), "conv"),
    "InstanceNorm2d": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True)),
        (3, 8, 6),
        "norm",
    ),
    "the whole model": (lambda: nn.Conv2d(3, 8, 1), (3, 8, 6), "conv"),
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


@each_attention
@pytest.mark.parametrize("squeeze", ["avg", "max", "none"])
@pytest.mark.parametrize(("build", "shape", "placement"), SAMPLES.values(), ids=SAMPLES)
def test_one_sample_without_a_batch(applying, squeeze, build, shape, placement):
    model, x = build(), torch.randn(shape)
    applying(model, squeeze=squeeze, placement=placement)
    assert len(attended_modules(model)) == 1
    expected = model(x[None])[0]
    torch.testing.assert_close(model(x), expected)
    fuse_attention(model, backend="reference")
    torch.testing.assert_close(model(x), expected)


@each_attention
@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
@pytest.mark.parametrize("shape", [(8, 8, 6), (8, 5, 6)], ids=str)
def test_one_sample_through_a_residual_block(applying, placement, shape):
    model, x = nn.Sequential(Residual()), torch.randn(shape)
    applying(model, placement=placement)
    assert len(attended_modules(model)) == 1
    torch.testing.assert_close(model(x), model(x[None])[0])


def test_a_convolution_that_flattens_its_output_has_a_batch():
    class Patches(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).flatten(2)

    model, x = Patches(3, 8, 2, 2), torch.randn(8, 3, 6, 6)
    plain = nn.Conv2d.forward(model, x).flatten(2)
    apply_eca(model, min_channels=8)
    assert torch.equal(model(x), model.attention(plain))


@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_a_batch_norm_refuses_a_sample_fused_and_not(placement):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    apply_eca(model, min_channels=8, placement=placement)
    for _ in range(2):
        with pytest.raises(ValueError, match="expected 4D input"):
            model(torch.randn(3, 8, 8))
        fuse_attention(model, backend="reference")


def test_an_attention_by_itself_takes_what_it_says():
    with pytest.raises(ValueError, match=r"\(N, 8, \*spatial\)"):
        EfficientChannelAttention(8)(torch.randn(8, 5, 5))
