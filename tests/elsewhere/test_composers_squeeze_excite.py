"""README's column about Composer's own SqueezeExcite, line by line."""

import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("composer")

from composer.algorithms.squeeze_excite import SqueezeExciteConv2d, apply_squeeze_excite
from torchvision.models.efficientnet import MBConv, MBConvConfig


def network(**options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 3, **options), nn.ReLU(), nn.Conv2d(8, 16, 3, **options))


def attend(model: nn.Module, optimizers=None) -> nn.Module:
    apply_squeeze_excite(model, latent_channels=4, min_channels=8, optimizers=optimizers)
    return model


def attended(model: nn.Module) -> list[str]:
    return [n for n, module in model.named_modules() if isinstance(module, SqueezeExciteConv2d)]


def test_state_dict_keys_are_renamed_and_old_checkpoints_do_not_load():
    before = network().state_dict()
    model = attend(network())
    assert "0.conv.weight" in model.state_dict()
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*Unexpected key"):
        model.load_state_dict(before)


def test_parameter_groups_fail_with_the_model_half_changed():
    model = network()
    groups = [{"params": [p]} for p in model.parameters()]
    with pytest.raises(RuntimeError, match="No parameters were removed"):
        attend(model, torch.optim.SGD(groups, lr=0.1))
    assert len(attended(model)) == 2


def test_several_optimizers_fail():
    model = network()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
    with pytest.raises(NotImplementedError):
        attend(model, optimizers)


def test_convolutions_inside_a_network_s_own_attention_are_attended():
    block = MBConv(MBConvConfig(4, 3, 1, 32, 32, 1), 0.0, nn.BatchNorm2d)
    assert [name for name in attended(attend(block)) if "fc" in name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_break(dtype):
    model = attend(network(dtype=dtype))
    with pytest.raises(RuntimeError, match="dtype"):
        model(torch.randn(1, 8, 8, 8, dtype=dtype))


def test_other_dimensions_and_the_root_are_skipped():
    assert attended(attend(nn.Sequential(nn.Conv1d(8, 8, 3), nn.Conv3d(8, 8, 3)))) == []
    assert attended(attend(nn.Conv2d(8, 8, 3))) == []


def test_in_and_out_channels_count():
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 3), nn.Conv2d(8, 8, 3))
    assert attended(attend(model)) == ["2"]


def test_where_nothing_matches_it_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attended(attend(nn.Sequential(nn.Conv2d(1, 2, 3)))) == []
