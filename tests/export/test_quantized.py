"""Eight-bit integers by PyTorch's export-based flow (pt2e), after training."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.export import Dim
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack
from torchvision.models import resnet18

from composer_attn.functional import attended_modules
from tests.surgeries import each_surgery

TRAINING = 1437  # of 1797 digits


@pytest.fixture(scope="module")
def digits():
    """The digits of scikit-learn, in an order of their own: 8 x 8 pixels, in three colours."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1).repeat(1, 3, 1, 1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(data.target)[order]


def small_resnet() -> nn.Module:
    """A ResNet-18 that keeps eight pixels to the first stage."""
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def train(model, images, labels, epochs):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in (b for _ in range(epochs) for b in torch.randperm(TRAINING).split(64)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, images, labels):
    found = model(images[TRAINING:]).argmax(1)
    return (found == labels[TRAINING:]).float().mean().item()


def quantized(model, images):
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: Dim("batch")},))
    quantizer = xnnpack.XNNPACKQuantizer().set_global(
        xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    )
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for batch in images[:256].split(64):  # calibration
            prepared(batch)
    return convert_pt2e(prepared)


@pytest.mark.slow
@each_surgery
def test_digits_in_eight_bits_are_as_accurate_within_a_point(surgery, digits):
    images, labels = digits
    model = small_resnet()
    surgery.apply(model, min_channels=64)
    assert len(attended_modules(model)) == 20
    train(model, images, labels, epochs=4)
    in_floats = accuracy(model, images, labels)
    small = quantized(model, images)
    weights = [held for held in small.state_dict().values() if held.dtype == torch.int8]
    linear = sum(isinstance(layer, nn.Linear) for layer in model.modules())
    assert len(weights) >= 20 + linear
    assert in_floats > 0.9
    assert abs(accuracy(small, images, labels) - in_floats) <= 0.01
