"""Copy an attended network such that every layer has its plain type."""

import copy
from typing import Any

from torch import Tensor, nn

from composer_attn.attention.efficient_channel_attention import ChannelConvolution
from composer_attn.errors import ModelError
from composer_attn.fusion import unfuse
from composer_attn.surgery import check_model, find_attended
from composer_attn.surgery.attend import (
    attended_side,
    attention_of,
    detach,
    is_extended_further,
)


def expanded_copy(model: nn.Module) -> nn.Module:
    """Copy a network, expanding each attended module into the plain module and its attention.

    For tools that recognize layers by exact type: counters of multiply-accumulates (thop, ptflops,
    torchinfo) ignore an attended convolution, whose class extends ``nn.Conv2d``. In the copy the
    convolution is an ``nn.Conv2d`` again, followed by its attention, whose layers are ``nn.Linear``
    and ``nn.Conv1d``. The copy computes the same, but its module names, and so its state-dict keys,
    differ, and nothing in it is fused. Use it to count operations, not to train or save.

    Args:
        model: a network, attended or not, fused or not; it is not changed.

    Returns:
        The copy, on the same devices, in the same modes.

    Raises:
        ModelError: the model is wrapped, compiled or scripted, or the class of an attended module
            was extended after the surgery, for example by a parametrization.

    Example:
        >>> import torch
        >>> from composer_attn import apply_eca, expanded_copy
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3), torch.nn.ReLU())
        >>> _ = apply_eca(model)
        >>> [type(module).__name__ for module in expanded_copy(model).modules()][2:]
        ['Conv2d', 'EfficientChannelAttention', 'ConvolutionAlongChannels', 'Conv1d', 'ReLU']
    """
    check_model(model)
    spread = copy.deepcopy(model)
    unfuse(spread)
    attended = find_attended(spread)
    covered = [name for name, module in attended.items() if is_extended_further(module)]
    if covered:
        raise ModelError(
            f"the class of {', '.join(covered)} was extended after the surgery (by a "
            "parametrization, or a wrapper): undo that first"
        )
    modules = list(spread.modules())
    pairs: dict[nn.Module | None, nn.Module] = {
        module: _spread(module) for module in attended.values()
    }
    for parent in modules:
        for name, child in parent._modules.items():
            if child in pairs:
                parent._modules[name] = pairs[child]
    return pairs.get(spread, spread)


class _Spread(nn.Module):
    """Forwards attribute access to a module inside it, for forwards that read its attributes.

    Args:
        inner: that module. Only its present attributes are forwarded, as counters probe for
            attributes that they set themselves.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self._answers = frozenset(dir(inner))
        self.train(inner.training)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_answers", ()) and name not in self._modules:
            return getattr(self._modules["inner"], name)
        return super().__getattr__(name)


class WithAttention(_Spread):
    """A module and its attention as two children, computing what the attended module does.

    Args:
        module: the module as before the surgery.
        attention: its attention.
        side: the side that is attended: ``output``, ``input`` or ``shortcut``.
    """

    def __init__(self, module: nn.Module, attention: nn.Module, side: str):
        super().__init__(module)
        self.side = side
        if side == "input":  # register the children in execution order
            self.attention, self.inner = attention, module
        else:
            self.inner, self.attention = module, attention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output of the attended module."""
        if self.side == "output":
            return self.attention(self.inner(*args, **kwargs))
        x, *others = args
        if self.side == "input":
            return self.inner(self.attention(x), *others, **kwargs)
        return self.inner(*args, **kwargs) + (self.attention(x) - x)


class ConvolutionAlongChannels(_Spread):
    """ECA's convolution ``(N, C) -> (N, C)`` as an ``nn.Conv1d``, which counters recognize.

    Args:
        layer: the layer whose weight it uses.
    """

    def __init__(self, layer: ChannelConvolution):
        size = layer.kernel_size
        conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False, device="meta")
        conv.weight = layer.weight
        super().__init__(conv.train(layer.training))
        self.inner = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C)`` along the channels."""
        return self.inner(x.unsqueeze(1)).squeeze(1)


def _spread(module: nn.Module) -> WithAttention:
    side, attention = attended_side(module), attention_of(module)
    detach(module)
    for name, layer in attention._modules.items():
        if type(layer) is ChannelConvolution and "weight" in layer._parameters:
            attention._modules[name] = ConvolutionAlongChannels(layer)
    return WithAttention(module, attention, side)
