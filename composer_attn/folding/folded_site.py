"""An attended convolution whose norm has gone into it: convolution, attention, one multiply-add."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention, squeeze_channels
from composer_attn.folding.arithmetic import FoldedNumbers
from composer_attn.folding.folded_norm import refuse_training
from composer_attn.surgery.attend import Attends, set_class, staying
from composer_attn.surgery.feature_maps import is_sample
from composer_attn.surgery.folding import refuse_fuse_modules

# The buffers that a folded site has besides its own.
BUFFERS = {"shift": "folded_shift", "inverse": "folded_inverse", "post": "folded_post"}

_folded_classes: "WeakValueDictionary[type, type[FoldedSite]]" = WeakValueDictionary()

if TYPE_CHECKING:
    _Site = Attends
else:
    _Site = object


class FoldedSite(_Site):
    """Mixed into the class of every attended convolution that has taken in the norm behind it."""

    attention: ChannelAttention  # no other is folded
    folded_shift: Tensor
    folded_inverse: Tensor | None
    folded_post: Tensor | None
    # The convolution's own forward, without attention.
    _alone: Callable[..., Tensor]

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute ``norm(attention(conv(input)))``."""
        refuse_training(self)
        z = self._alone(input, *args, **kwargs)
        if is_sample(input, self._attn_dimensions):
            return self._attend_folded(z.unsqueeze(0)).squeeze(0)
        return self._attend_folded(z)

    def _attend_folded(self, z: Tensor) -> Tensor:
        s = _as_excitation(self._scales(z), z, self.attention.squeeze)
        shift = self.folded_shift.to(z.dtype).reshape(-1, *[1] * (z.dim() - 2))
        return torch.addcmul(shift, z, s)

    def _scales(self, z: Tensor) -> Tensor:
        """Compute the attention's scales from the output ``z``, which is scaled by the norm."""
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
    """Give scales the shape in which they scale ``z``."""
    s = s.to(z.dtype)
    if squeeze == "none":
        return s.reshape(z.movedim(1, -1).shape).movedim(-1, 1)
    return s[(...,) + (None,) * (z.dim() - 2)]


def _make_folded(make: Any, args: tuple) -> nn.Module:
    module = make(*args)
    set_class(module, folded_class(type(module)))
    return module


def folded_class(attended: type[nn.Module]) -> type[FoldedSite]:
    """Return the class that extends an attended convolution's; one for each."""
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
        found = cast(type[FoldedSite], made)  # by its first base
        _folded_classes[attended] = found
        refuse_fuse_modules(found, attended)
    return found


def _takes_one_input(attended: type) -> bool:
    # One that is the whole model has a signature that torch.fx and torch.export can read.
    return issubclass(attended, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def fill(site: nn.Module, numbers: FoldedNumbers) -> None:
    """Let an attended convolution compute what it and its norm did."""
    for name, buffer in BUFFERS.items():
        site._buffers[buffer] = getattr(numbers, name)
    set_class(site, folded_class(type(site)))


def vacate(site: nn.Module) -> None:
    """Undo :func:`fill`; harmless where only half of it was done."""
    for buffer in BUFFERS.values():
        site._buffers.pop(buffer, None)
    if isinstance(site, FoldedSite):
        set_class(site, type(site).__mro__[2])
