"""ConvNeXt's blocks, which end in a module that does not define a number of channels."""

import pytest
import timm
import torch

from composer_attn.functional import apply_eca, detach_attention
from tests import snapshots


@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
def test_convnext_of_timm_is_attended_at_its_branchs_end_behind_the_layer_scale(placement):
    model = timm.create_model("convnext_atto", num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32)
    before, outputs = snapshots.of_model(model), model(x)
    plan = apply_eca(model, min_channels=160, placement=placement)
    assert [site.channels for site in plan.chosen] == [160] * 6 + [320] * 2
    assert not torch.equal(model(x), outputs)
    detach_attention(model)
    assert snapshots.of_model(model) == before
