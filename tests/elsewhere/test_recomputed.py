"""Parts of a fused network that are computed twice, or observed only during the forward."""

import copy

import pytest
import timm
import torch
from composer.callbacks import ActivationMonitor
from torch.utils import checkpoint

from composer_attn import apply_eca, apply_squeeze_excite, fuse_attention
from tests.algorithms.training import ALGORITHMS, losses, trainer
from tests.devices.test_networks import randomize
from tests.fusion.test_numbers import assert_equal, gradients


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("surgery", [apply_squeeze_excite, apply_eca])
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_timms_gradient_checkpointing(surgery, placement, reentrant, monkeypatch):
    torch.manual_seed(0)
    plain = randomize(timm.create_model("resnet18", num_classes=5).double())
    surgery(plain, min_channels=128, placement=placement)
    fused = copy.deepcopy(plain)
    fuse_attention(fused)
    fused.set_grad_checkpointing()
    # As timm has it without, and with, its environment variable TIMM_REENTRANT_CKPT.
    original = checkpoint.checkpoint

    def chosen(function, *args, **options):
        return original(function, *args, **options | {"use_reentrant": reentrant})

    for module in ("timm.models._manipulate", "torch.utils.checkpoint"):
        monkeypatch.setattr(f"{module}.checkpoint", chosen)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    ys = []
    for model in (plain, fused):
        y = model(x.clone().requires_grad_())
        y.square().sum().backward()
        ys.append(y.detach())
    assert_equal({"": ys[1]}, {"": ys[0]}, 1e-9)
    assert len(gradients(fused)) == len(list(fused.parameters()))
    assert_equal(gradients(fused), gradients(plain), 1e-9)


@pytest.mark.parametrize("key", ALGORITHMS)
def test_composers_activation_monitor_sees_a_run_that_learns_the_same(key):
    runs = [
        trainer(
            [ALGORITHMS[key](fuse=fuse)],
            callbacks=[ActivationMonitor("1ba", ignore_module_types=[])] * watched,
            network="resnet",
        )
        for fuse, watched in ((False, 0), (True, 0), (True, 1))
    ]
    for run in runs:
        run.fit()
    # Before a step, and after one; in float32, further steps at this rate make rounding larger.
    unfused, fused, watched = (losses(run)[:2] for run in runs)
    assert unfused[0] != unfused[1]
    assert fused == pytest.approx(unfused, rel=1e-4)
    assert watched == pytest.approx(unfused, rel=1e-4)
