"""Activation and attention are fused where no norm precedes them."""

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as weight_norm_by_hooks

from composer_attn import apply_eca, fuse_attention, unfuse_attention
from composer_attn.attention import SqueezeExcitation
from composer_attn.fusion.deferring_convolution import DeferringConvolution
from composer_attn.fusion.fused_norms import is_fused
from composer_attn.surgery.attend import attend
from tests.fusion.own_networks import (
    ATTENTIONS,
    CHANNELS,
    Own,
    assert_same,
    everything,
    own_pair,
    small,
)


def bare(kind="torchvision", activation="silu in place") -> Own:
    return small(kind, activation, normed=False)


def draw(shape=(2, 3, 9, 7)) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def both(plain: nn.Module, fused: nn.Module, x: torch.Tensor) -> None:
    assert_same(everything(fused, x), everything(plain, x))


def test_one_map_less_is_kept():
    kept = []
    for model in own_pair(bare(activation="silu")):
        held = {}

        def pack(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = draw((2, 3, 34, 34))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        kept.append(sum(size >= 2 * CHANNELS * 32 * 32 * 8 for size in held.values()))
    assert kept == [3, 2]  # input and output of the attended activation remain


def test_the_plan_names_activation_and_attention():
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3), nn.SiLU(), ATTENTIONS["torchvision"](),
        nn.Conv2d(CHANNELS, CHANNELS, 1), nn.AvgPool2d(2), ATTENTIONS["SEModule"](),
    )  # fmt: skip
    assert str(fuse_attention(model, "reference")) == (
        "backend reference: 0 of 2 sites fused with a norm, 1 with an activation, "
        "0 with an addition\n"
        "site  kind               norm  activation  addition  fused\n"
        "2     SqueezeExcitation  -     1           -         yes\n"
        "5     SEModule           -     -           -         no: its input comes from 4 "
        "(AvgPool2d), not from a batch norm and activation alone"
    )
    assert type(model[0]).__mro__[1] is DeferringConvolution
    assert not is_fused(model[3])


def test_the_output_of_the_convolution_held_by_a_hook_is_overwritten_as_it_would_be():
    for model in own_pair(bare(activation="relu in place")):
        held = []
        model.conv.register_forward_hook(lambda module, x, y, held=held: held.append(y))
        model(draw())
        assert held[0].min() == 0


class Twice(Own):
    def forward(self, x):
        return self.last(self.attn(self.act(self.conv(x)))) + self.conv(x).mean()


class Shares(Own):
    def forward(self, x):
        x = self.conv(x)
        return self.last(self.attn(torch.nn.functional.silu(x)) + x)


class Rounded(nn.Conv2d):
    def _conv_forward(self, *given):
        return super()._conv_forward(*given).round()


def as_other_class(cls) -> Own:
    model = bare(activation="silu")
    model.__class__ = cls
    return model


def with_convolution(convolution: nn.Module) -> Own:
    model = bare(activation="silu")
    model.conv = convolution
    return model


NOT_PLANNED = {
    "the convolution is called twice": lambda: as_other_class(Twice),
    "its output is used elsewhere": lambda: as_other_class(Shares),
    "its weight is parametrized": lambda: with_convolution(
        parametrizations.weight_norm(nn.Conv2d(3, CHANNELS, 3))
    ),
    "it computes something else": lambda: with_convolution(Rounded(3, CHANNELS, 3)),
    "another module": lambda: with_convolution(
        nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.AvgPool2d(1))
    ),
}


@pytest.mark.parametrize("case", NOT_PLANNED)
def test_what_is_not_planned_is_left_alone(case):
    plain, fused = own_pair(NOT_PLANNED[case](), fused=0)
    (site,) = fuse_attention(fused, "reference").alone
    assert "its input comes from" in site.reason
    both(plain, fused, draw())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weights_computed_by_hooks_agree():
    model = bare()
    model.conv = weight_norm_by_hooks(model.conv)
    torch.manual_seed(0)
    plain = model.double()
    twin = bare()
    twin.conv = weight_norm_by_hooks(twin.conv)
    twin.double().load_state_dict(plain.state_dict())
    assert len(fuse_attention(twin, "reference").fused) == 1
    both(plain, twin, draw())


def test_ours_in_its_place_is_fused_too():
    model = bare("SqueezeExcite", "hardswish in place")
    apply_eca(model, min_channels=1, replace=True)
    plain, fused = own_pair(model)
    (site,) = fuse_attention(fused, "reference").fused
    assert (site.convolution, site.activation, site.function) == ("conv", "act", "hardswish")
    both(plain, fused, draw())
    assert unfuse_attention(fused) == ["attn"]


@pytest.mark.parametrize("activation", ["silu", "hardswish in place"])
def test_ours_on_an_activation_is_fused_with_it(activation):
    model = bare(activation=activation)
    model.attn = nn.Identity()
    attend(model.act, SqueezeExcitation(CHANNELS, 4))
    plain, fused = own_pair(model)
    (site,) = fuse_attention(fused, "reference").fused
    assert (site.name, site.norm, site.convolution) == ("act", "", "conv")
    both(plain, fused, draw())
    assert unfuse_attention(fused) == ["act"]


def test_a_norm_after_ours_comes_first():
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3), nn.ReLU(), ATTENTIONS["SEModule"](), nn.BatchNorm2d(CHANNELS)
    )
    apply_eca(model, min_channels=1, replace=True)
    plain, fused = own_pair(model)
    (site,) = fuse_attention(fused, "reference").fused
    assert (site.norm, site.convolution) == ("3", "")
    both(plain, fused, draw())


def test_recomputed_inputs_agree():
    plain, fused = own_pair(bare(), recompute=True)
    assert fuse_attention(fused, "reference", recompute=True).recomputing == ("last",)
    both(plain, fused, draw())


def test_inference_mode_and_no_gradients():
    plain, fused = (model.eval() for model in own_pair(bare()))
    x = draw((2, 3, 600, 300))  # more values than a module's own pass is left to compute
    expected = plain(x).detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)


def test_compiled_as_one_graph_and_exported():
    torch._dynamo.reset()
    plain, fused = own_pair(bare())
    x = draw()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    assert_same(everything(fused, x, compiled), everything(plain, x))
    program = torch.export.export(fused.eval(), (x,))
    torch.testing.assert_close(program.module()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


def test_gradients_of_gradients_are_refused_by_name():
    _, fused = own_pair(bare())
    x = draw().requires_grad_()
    (dx,) = torch.autograd.grad(fused(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
