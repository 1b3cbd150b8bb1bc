"""The two passes over a feature map, in numbers."""

import pytest
import torch

from composer_attn.ops import channel_means, scale_channels


@pytest.mark.parametrize("spatial", [(4,), (2, 2), (2, 1, 2)])
def test_means_are_over_all_positions_of_a_channel(spatial):
    x = torch.arange(24.0).reshape(2, 3, *spatial)
    assert channel_means(x, 3).tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_half_precision_are_float32(dtype):
    x = torch.tensor([1.0, 1.0 + torch.finfo(dtype).eps], dtype=dtype).reshape(1, 1, 2)
    means = channel_means(x, 1)
    assert means.dtype == torch.float32
    assert means.item() == 1.0 + torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_of_full_precision_keep_their_dtype(dtype):
    assert channel_means(torch.ones(2, 3, 4, dtype=dtype), 3).dtype == dtype


@pytest.mark.parametrize("spatial", [(4,), (2, 2), (2, 1, 2)])
def test_scaling_multiplies_every_position_of_a_channel(spatial):
    x = torch.ones(1, 3, *spatial, dtype=torch.bfloat16)
    scaled = scale_channels(x, torch.tensor([[0.0, 0.5, 2.0]]))
    assert scaled.dtype == torch.bfloat16
    assert scaled.flatten(2).tolist() == [[[0.0] * 4, [0.5] * 4, [2.0] * 4]]
