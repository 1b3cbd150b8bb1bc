"""The papers' equations written out in float64: what attentions, and attended networks, compute."""

import copy

import torch
from torch import Tensor, nn

GATES = {
    ("sigmoid", "paper"): lambda z: 1 / (1 + (-z).exp()),
    ("hard_sigmoid", "paper"): lambda z: (z / 6 + 0.5).clip(0, 1),
    ("tanh", "paper"): lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
    ("relu", "paper"): lambda z: z * (z > 0),
    ("sigmoid", "identity"): lambda z: 2 / (1 + (-z).exp()),
    ("hard_sigmoid", "identity"): lambda z: 2 * (z / 6 + 0.5).clip(0, 1),
    ("tanh", "identity"): lambda z: 1 + (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
    ("relu", "identity"): lambda z: (1 + z) * (1 + z > 0),
}


def pool(x: Tensor) -> Tensor:
    """SENet, equation 2: sum over space, divided by the number of positions."""
    positions = x[0, 0].numel()
    return x.double().flatten(2).sum(2) / positions


def dense(layer: nn.Linear, x: Tensor) -> Tensor:
    product = torch.einsum("oi,ni->no", layer.weight.double(), x)
    return product if layer.bias is None else product + layer.bias.double()


def slide(kernel: Tensor, means: Tensor) -> Tensor:
    """ECA, equation 9: a convolution over neighbouring channels, zero-padded at both ends."""
    channels, size = means.shape[1], len(kernel)
    out = torch.zeros_like(means)
    for channel in range(channels):
        for offset in range(size):
            neighbour = channel + offset - size // 2
            if 0 <= neighbour < channels:
                out[:, channel] += kernel[offset] * means[:, neighbour]
    return out


def excitation(attention: nn.Module, x: Tensor) -> Tensor:
    """Compute an attention's scales from its weights alone."""
    if hasattr(attention, "fc1"):
        hidden = dense(attention.fc1, pool(x))
        logits = dense(attention.fc2, hidden * (hidden > 0))
    else:
        logits = slide(attention.conv.weight.double().flatten(), pool(x))
    return GATES[attention.gate, attention.start](logits)


def scale(x: Tensor, scales: Tensor) -> Tensor:
    """SENet, equation 4: multiply every position of a channel by the channel's scale."""
    return x.double() * scales.reshape(*scales.shape, *[1] * (x.dim() - 2))


class FollowedByAttention(nn.Module):
    """A convolution followed by its attention, neither of them attended."""

    def __init__(self, conv: nn.Module, attention: nn.Module):
        super().__init__()
        self.conv = conv
        self.weights = attention

    def forward(self, x):
        y = self.conv(x)
        return scale(y, excitation(self.weights, y))


def followed_by_attention(plain: nn.Module, attentions: dict[str, nn.Module]) -> nn.Module:
    """Copy a network; replace each site, under all names, by :class:`FollowedByAttention`."""
    model = copy.deepcopy(plain)
    new = {model.get_submodule(name): FollowedByAttention(model.get_submodule(name), attention)
           for name, attention in attentions.items()}  # fmt: skip
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new and not isinstance(parent, FollowedByAttention):
                parent._modules[name] = new[child]
    return new.get(model, model)
