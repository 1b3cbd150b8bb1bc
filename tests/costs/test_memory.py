"""What a forward pass keeps for backward is counted."""

import torch
from torch import nn

from composer_attn import fuse_attention
from composer_attn.costs.memory import saved_bytes
from composer_attn.ops.recompute import hooks_are_active
from tests.fusion.own_networks import small


def test_bytes_kept_for_backward_are_each_storage_once_and_no_parameters():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 4)
    # The input, and the output of the ReLU, which the second layer keeps too.
    assert saved_bytes(model, lambda: model(x)) == 4 * 16 * (4 + 8)


def test_what_is_computed_again_does_not_count():
    model, x = small(), torch.randn(2, 3, 12, 12)
    fuse_attention(model)
    fused = saved_bytes(model, lambda: model(x))
    fuse_attention(model, recompute=True)
    assert fused - saved_bytes(model, lambda: model(x)) == 2 * 16 * 10 * 10 * 4


def test_hooks_are_ignored_for_the_count_alone():
    seen = []
    saved_bytes(nn.Identity(), lambda: seen.append(hooks_are_active()))
    with torch.autograd.graph.save_on_cpu():
        seen.append(hooks_are_active())
    assert seen == [False, True]
