"""An attended convolution with its norm folded in: convolution, attention, one multiply-add."""

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention, squeeze_channels
from composer_attn.folding.arithmetic import FoldedNumbers
from composer_attn.folding.beforehand import Windows, output_means, windows_of
from composer_attn.folding.folded_norm import refuse_training
from composer_attn.folding.in_place import prepared_call
from composer_attn.ops.autograd_path import traced
from composer_attn.ops.beforehand import LARGE_FOR_CALLS, pays_off
from composer_attn.surgery.attend import Attends, set_class, staying
from composer_attn.surgery.feature_maps import is_sample
from composer_attn.surgery.folding import refuse_fuse_modules
from composer_attn.surgery.validation import FOLDED

# The additional buffers of a folded site.
BUFFERS = {"shift": "folded_shift", "inverse": "folded_inverse", "post": "folded_post"}

_EXACT = (torch.float32, torch.float64)
# Elements of an output that does not stay in a processor's cache from one pass to the next.
_LARGE = 1 << 21
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
        if self.training:
            refuse_training(self)
        if args or kwargs or not _is_free(input):
            return self._attend_plainly(input, self._alone(input, *args, **kwargs), False)
        call = None
        if not is_sample(input, self._attn_dimensions):
            call = prepared_call(self, vars(self)[FOLDED].backend, input)
            if input.shape[:1] == (1,):
                found = self._weights_beforehand(input, call)
                if found is not None:
                    return cast(Any, self)._conv_forward(input, *found)
        z = self._alone(input)
        if call is not None and call.attend(z):
            return z
        return self._attend_plainly(input, z, True)

    def _weights_beforehand(self, x: Tensor, call: Any) -> tuple[Tensor, Tensor] | None:
        """Return weight and bias with the scales if that is faster than scaling the output.

        The scales of a single image are the same for all positions. Scaling the weights pays if the
        passes over input and weights are much smaller than those over the output; where a backend
        attends the output in one call, only if that is large, too.
        """
        conv: Any = self
        if not pays_off(x, conv, 0 if call is None else LARGE_FOR_CALLS) or not self._is_linear(x):
            return None
        windows = windows_of(conv, x)
        output = conv.out_channels * prod(window.number for window in windows)
        if x.numel() + 3 * conv.weight.numel() >= output:
            return None
        if call is None:
            return self._scaled_beforehand(x, windows)
        if conv.groups == 1 and all(window.sees_all for window in windows):
            return call.weights(x, conv.weight, conv.bias)
        return self._scaled_beforehand(x, windows) if output >= _LARGE else None

    def _is_linear(self, x: Tensor) -> bool:
        """Return whether the averages of the output are linear in ``x``, and all that is needed."""
        conv: Any = self
        if x.dim() != conv.weight.dim() or x.dtype != conv.weight.dtype or x.dtype not in _EXACT:
            return False
        if self.attention.squeeze != "avg" or type(self)._alone not in _PLAIN_FORWARDS:
            return False
        return conv.padding_mode == "zeros" and not torch.is_autocast_enabled(x.device.type)

    def _scaled_beforehand(self, x: Tensor, windows: tuple[Windows, ...]) -> tuple[Tensor, Tensor]:
        """Compute the scales of a single image from its input, and apply them to the weights."""
        conv: Any = self
        s = self._excitation_of(output_means(conv, x, windows))[0].to(x.dtype)
        weight = conv.weight * s.reshape(-1, *[1] * (x.dim() - 1))
        shift = self.folded_shift
        return weight, shift if conv.bias is None else torch.addcmul(shift, s, conv.bias)

    def _attend_plainly(self, input: Any, z: Tensor, free: bool) -> Tensor:
        """Attend the output with operations of torch."""
        if is_sample(input, self._attn_dimensions):
            return self._attend_folded(z.unsqueeze(0), free).squeeze(0)
        return self._attend_folded(z, free)

    def _attend_folded(self, z: Tensor, free: bool) -> Tensor:
        s = _as_excitation(self._scales(z), z, self.attention.squeeze)
        shift = self.folded_shift.to(z.dtype).reshape(-1, *[1] * (z.dim() - 2))
        # The convolution's output belongs to nobody else.
        return torch.addcmul(shift, z, s, out=z) if free else torch.addcmul(shift, z, s)

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


def _is_free(x: Tensor) -> bool:
    """Return whether only numbers are asked for: no gradient, and no graph of operations."""
    # Exporting is a kind of compiling, which `traced` includes.
    return type(x) is Tensor and not torch.is_grad_enabled() and not traced()


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
