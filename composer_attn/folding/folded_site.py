"""An attended convolution with its norm folded in: convolution, attention, one multiply-add."""

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention, squeeze_channels
from composer_attn.folding.arithmetic import FoldedNumbers
from composer_attn.folding.folded_norm import refuse_training
from composer_attn.fusion.handoff import needs_plain_operations
from composer_attn.surgery.attend import Attends, set_class, staying
from composer_attn.surgery.feature_maps import is_sample
from composer_attn.surgery.folding import refuse_fuse_modules

# The additional buffers of a folded site.
BUFFERS = {"shift": "folded_shift", "inverse": "folded_inverse", "post": "folded_post"}

_PLAIN_FORWARDS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}

_folded_classes: "WeakValueDictionary[type, type[FoldedSite]]" = WeakValueDictionary()

if TYPE_CHECKING:
    _Site = Attends
else:
    _Site = object


class FoldedSite(_Site):
    """Mixin for attended convolutions that the norm after them is folded into."""

    attention: ChannelAttention  # sites with any other attention are not folded
    folded_shift: Tensor
    folded_inverse: Tensor | None
    folded_post: Tensor | None
    # The original forward of the convolution, without attention.
    _alone: Callable[..., Tensor]

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute ``norm(attention(conv(input)))``."""
        refuse_training(self)
        if not (args or kwargs) and self._pays_beforehand(input):
            return self._scaled_beforehand(input)
        z = self._alone(input, *args, **kwargs)
        if is_sample(input, self._attn_dimensions):
            return self._attend_folded(z.unsqueeze(0)).squeeze(0)
        return self._attend_folded(z)

    def _pays_beforehand(self, x: Tensor) -> bool:
        """Return whether scaling the weights is faster than scaling the output.

        This requires a single image and a 1x1 convolution, whose output averages are linear in its
        input averages. It pays if the passes over input and weights are much smaller than those
        over the output. (On one core, relative to the convolution alone: ResNet-50's 64 to 256
        channels at 56x56 take 1.14 rather than 1.68; 128 to 512 at 28x28: 1.05 rather than 1.44;
        256 to 1024 at 14x14: no gain.)
        """
        if torch.compiler.is_compiling() or needs_plain_operations() or torch.is_grad_enabled():
            return False
        conv: Any = self
        weight = conv.weight
        if type(x) is not Tensor or x.dim() != weight.dim() or len(x) != 1:
            return False
        if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
            return False
        if self.attention.squeeze != "avg" or type(self)._alone not in _PLAIN_FORWARDS:
            return False
        if conv.groups != 1 or any(each != 1 for each in conv.kernel_size):
            return False
        # Padding would add positions that the averages of the input do not include.
        if not isinstance(conv.padding, str) and any(conv.padding):
            return False
        sizes = zip(x.shape[2:], conv.stride, strict=True)
        positions = prod(-(-size // step) for size, step in sizes)
        return x.numel() + 3 * weight.numel() < conv.out_channels * positions

    def _scaled_beforehand(self, x: Tensor) -> Tensor:
        """Compute the scales of a single image from its input, and apply them to the weights."""
        conv: Any = self
        seen: Any = (..., *(slice(None, None, step) for step in conv.stride))
        means = x[seen].mean(dim=tuple(range(2, x.dim())), keepdim=True)
        s = self._excitation_of(self._alone(means).flatten(1))[0].to(x.dtype)
        weight = conv.weight * s.reshape(-1, *[1] * (x.dim() - 1))
        shift = self.folded_shift
        bias = shift if conv.bias is None else torch.addcmul(shift, s, conv.bias)
        return conv._conv_forward(x, weight, bias)

    def _attend_folded(self, z: Tensor) -> Tensor:
        s = _as_excitation(self._scales(z), z, self.attention.squeeze)
        shift = self.folded_shift.to(z.dtype).reshape(-1, *[1] * (z.dim() - 2))
        return torch.addcmul(shift, z, s)

    def _scales(self, z: Tensor) -> Tensor:
        """Compute the attention's scales from ``z``, the output scaled by the norm."""
        attention = self.attention
        if attention.squeeze == "avg+max":
            both = (squeeze_channels(z, attention.channels, "avg+max", i) for i in (0, 1))
            return self._excitation_of(*both)
        return self._excitation_of(attention.apply_squeeze(z))

    def _excitation_of(self, *squeezed: Tensor) -> Tensor:
        inverse, post = self.folded_inverse, self.folded_post
        taken = squeezed if inverse is None else [each * inverse for each in squeezed]
        s = self.attention.excitation_of(*taken)
        return s if post is None else s * post

    def __reduce_ex__(self, protocol):
        # As in Attends: the class has no importable name.
        make, args, *state = super().__reduce_ex__(max(protocol, 2))
        return _make_folded, (make, args), *state


def _as_excitation(s: Tensor, z: Tensor, squeeze: str) -> Tensor:
    """Reshape scales so that they broadcast with ``z``."""
    s = s.to(z.dtype)
    if squeeze == "none":
        return s.reshape(z.movedim(1, -1).shape).movedim(-1, 1)
    return s[(...,) + (None,) * (z.dim() - 2)]


def _make_folded(make: Any, args: tuple) -> nn.Module:
    module = make(*args)
    set_class(module, folded_class(type(module)))
    return module


def folded_class(attended: type[nn.Module]) -> type[FoldedSite]:
    """Return the folded class extending an attended convolution's class, cached per class."""
    found = _folded_classes.get(attended)
    if found is None:
        one_input = _takes_one_input(attended)
        plain: Any = attended.__mro__[attended.__mro__.index(Attends) + 1]
        attributes: dict[str, Any] = {
            "__module__": attended.__module__,
            "forward": staying(FoldedSite, one_input=one_input),
            "_alone": plain.forward,
        }
        made = type(f"Folded{attended.__name__}", (FoldedSite, attended), attributes)
        found = cast(type[FoldedSite], made)  # its first base is FoldedSite
        _folded_classes[attended] = found
        refuse_fuse_modules(found, attended)
    return found


def _takes_one_input(attended: type) -> bool:
    # If it is the whole model, torch.fx and torch.export need a signature that they can read.
    return issubclass(attended, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def fill(site: nn.Module, numbers: FoldedNumbers) -> None:
    """Make an attended convolution compute what it and its norm did."""
    for name, buffer in BUFFERS.items():
        site._buffers[buffer] = getattr(numbers, name)
    set_class(site, folded_class(type(site)))


def vacate(site: nn.Module) -> None:
    """Undo :func:`fill`; safe to call if it was only partly done."""
    for buffer in BUFFERS.values():
        site._buffers.pop(buffer, None)
    if isinstance(site, FoldedSite):
        set_class(site, type(site).__mro__[2])
