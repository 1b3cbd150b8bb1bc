"""Small networks that come with attention of their own, and how to find it."""

import torch
import torchvision
from torch import nn

from composer_attn.surgery.existing_attention.known import RESCALING


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


class Block(nn.Module):
    """Convolution, attention, convolution, with names that no library uses."""

    def __init__(self, attention):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 1)
        self.norm = nn.BatchNorm2d(64)
        self.act = nn.ReLU()
        self.own = attention
        self.last = nn.Conv2d(64, 8, 1)

    def forward(self, x):
        return self.last(self.own(self.act(self.norm(self.conv(x)))))


def with_se():
    return Block(torchvision.ops.SqueezeExcitation(64, 16)), torch.randn(2, 3, 8, 8)


def own_attentions(model):
    return {n: m for n, m in model.named_modules() if type(m).__name__ in RESCALING}
