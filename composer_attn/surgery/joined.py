"""The classes of modules that compute attention and batch norm jointly.

As an attended module (:mod:`composer_attn.surgery.attend`), a joined one is the same object as
before, whose class extends its own.
"""

from collections.abc import Callable
from functools import wraps
from weakref import WeakValueDictionary

from torch import Tensor, nn

from composer_attn.errors import ModelError
from composer_attn.ops import attend_then_normalize, normalize_then_attend
from composer_attn.ops.joint import joinable
from composer_attn.surgery.attend import building, set_class, staying
from composer_attn.surgery.folding import refuse_fuse_modules
from composer_attn.surgery.links import (
    Ending,
    Joint,
    Link,
    can_be_joined,
    is_watched,
    needs_plain_operations,
)

_joined_classes: "WeakValueDictionary[tuple[type, type], type]" = WeakValueDictionary()


class Joined:
    """Mixed into the class of every module that takes part in a joint computation."""

    _attn_takes: Link | None = None
    _attn_ends: Ending | None = None

    def __reduce_ex__(self, protocol):
        # As in Attends: the class has no importable name.
        make, args, *state = super().__reduce_ex__(max(protocol, 2))
        args = tuple(unjoined_class(self) if arg is type(self) else arg for arg in args)
        return _make_joined, (make, args, role_of(self)), *state


class Parent(Joined):
    """Opens the links between modules below it while its forward runs."""

    _attn_joints: tuple[Joint, ...] = ()

    def __prepare_scriptable__(self):
        raise ModelError(
            "torch.jit.script cannot compile joined modules: use torch.jit.trace or torch.export, "
            "or call unfuse_attention first"
        )


class AttendedNorm(Joined):
    """A batch norm that is attended itself: computes ``attention(norm(x))`` jointly."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize and attend."""
        if not self._may_join(input):
            return super().forward(input)
        return _end(self, normalize_then_attend, input, self.attention, self._attn_backend)

    def _may_join(self, x: Tensor) -> bool:
        if needs_plain_operations() or not isinstance(x, Tensor):
            return False
        if is_watched(self) or not can_be_joined(self.attention):
            return False
        # What the passes do not take, they would leave to this very module.
        return joinable(x, self.attention, self)


class NextNorm(Joined):
    """The batch norm after an attended module: computes ``norm(attention(x))`` jointly."""

    def forward(self, input: Tensor) -> Tensor:
        """Attend and normalize what was given unattended; normalize anything else."""
        giver = self._attn_takes.take(input)
        if giver is None:
            return super().forward(input)
        if not can_be_joined(giver.attention):
            return super().forward(giver.attention(input))
        return _end(self, attend_then_normalize, input, giver.attention, giver._attn_backend)


def _end(norm: Joined, function: Callable, x: Tensor, attention: nn.Module, backend: str) -> Tensor:
    """Compute the output of a norm, or leave it to what its parent does with it."""
    ends = norm._attn_ends
    if ends is None or type(x) is not Tensor or not ends.is_open():
        return function(x, attention, norm, backend)

    version = _version(x)

    def compute(relu: bool, shortcut: Tensor | None) -> Tensor:
        if _version(x) != version:
            raise ModelError(
                f"the input of a {type(norm).__name__} is changed in place before its output is "
                "used, which is computed only then: call unfuse_attention"
            )
        return function(x, attention, norm, backend, relu=relu, shortcut=shortcut)

    return ends.put_off(x, compute)


def _version(x: Tensor) -> int:
    """Count the changes in place; a tensor of inference mode does not."""
    return 0 if x.is_inference() else x._version


def joined_class(original: type, role: type[Joined]) -> type:
    """Return the class that extends ``original`` by a role; one for each of both."""
    found = _joined_classes.get((original, role))
    if found is None:
        attributes = {
            "__module__": original.__module__,
            "__init__": building(original, unjoined_class),
        }
        is_parent = role is Parent
        attributes["forward"] = (
            _opening(original.forward) if is_parent else staying(role, one_input=True)
        )
        found = type(f"Joined{original.__name__}", (role, original), attributes)
        _joined_classes[original, role] = found
        refuse_fuse_modules(found, original)
    return found


def _opening(forward: Callable) -> Callable:
    # torch.fx and torch.export ask for the signature, and find that of what is wrapped.
    @wraps(forward)
    def opening(self, *args, **kwargs):
        # Others (Accelerate) keep this forward, and call it on a module that is fused no more.
        if not isinstance(self, Parent) or needs_plain_operations():
            return forward(self, *args, **kwargs)
        links = []
        for joint in self._attn_joints:
            if not joint.link.is_open() and joint.may_open(self):
                joint.link.open()
                links.append(joint.link)
        try:
            y = forward(self, *args, **kwargs)
        finally:
            taken = [link.close() for link in links]
        if not all(taken):
            raise ModelError(
                f"the forward of a {type(self).__name__.removeprefix('Joined')} no longer hands "
                "an attended output to what it was fused with: call unfuse_attention"
            )
        return y

    return opening


def _make_joined(make: Callable, args: tuple, role: type[Joined]):
    module = make(*args)
    set_class(module, joined_class(type(module), role))
    return module


def is_joined(module: nn.Module) -> bool:
    """Say whether a module takes part in a joint computation, by its class."""
    return isinstance(module, Joined)


def role_of(module: nn.Module) -> type[Joined]:
    """Return the part that a joined module plays."""
    mro = type(module).__mro__
    return mro[mro.index(Joined) - 1]


def unjoined_class(module: nn.Module) -> type:
    """Return the class that a joined module had before."""
    mro = type(module).__mro__
    return mro[mro.index(Joined) + 1]
