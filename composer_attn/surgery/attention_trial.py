"""Try an attention away from the network, before anything changes: does it keep its shape?"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention
from composer_attn.errors import ArgumentError
from composer_attn.surgery.recipe import Recipe
from composer_attn.surgery.sites import CONVOLUTIONS, Point
from composer_attn.surgery.stand_ins import is_replacement

# Spatial sizes to try, the same in every dimension. What takes only one of them gets to it.
_SIZES = (8, 7, 14, 16, 28, 32, 56)
_BATCH = 2
_DIMENSIONS: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


@dataclass(frozen=True)
class Tried:
    """What was found of the attention of a site.

    Attributes:
        kind: name of its class.
        parameters: how many it has.
        module: one as it would be built there.
    """

    kind: str
    parameters: int
    module: nn.Module


class Trials:
    """Tries each attention that a recipe builds once; sites that are alike share a trial.

    Args:
        model: the network, for how many dimensions its feature maps have.
        recipe: builds the attentions.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        self._model, self._recipe = model, recipe
        self._known: dict[object, Tried] = {}

    def at(self, point: Point) -> Tried:
        """Build the attention of a site, without memory where that works, and run it.

        Raises:
            ArgumentError: it cannot be built, or does not map a feature map to one of the same
                shape and dtype; or is not the identity where ``start="identity"`` says so.
        """
        # What stands there may have no parameters, nor may any of it.
        owner = self._model.get_submodule(point.owner)
        near = next(chain(owner.parameters(), self._model.parameters()), None)
        dtype = torch.get_default_dtype() if near is None else near.dtype
        dimensions = _dimensions(self._model, point)
        arguments = repr(self._recipe.arguments_at(point.names))
        key = (point.channels, dimensions, dtype, arguments)
        if key not in self._known:
            try:
                self._known[key] = self._try(point, dimensions, dtype)
            except ArgumentError as error:
                message = f"{error} (at {point.name or 'the model itself'})"
                raise type(error)(message) from error
        return self._known[key]

    def _try(self, point: Point, dimensions: int, dtype: torch.dtype) -> Tried:
        recipe, failure = self._recipe, None
        for device in ("meta", "cpu"):
            with _undisturbed(device):
                try:
                    attention = recipe.build(point.channels, point.names, device, dtype)
                    attention = _on_trial(recipe, attention, device, dtype)
                    _check_weights(recipe, attention)
                    _check_output(recipe, attention, point.channels, dimensions, dtype, device)
                except (ArgumentError, _FailedError) as error:
                    failure = error
                    continue
            if not _is_known(attention):
                self._check_identity(point, dimensions)
            count = sum(p.numel() for p in attention.parameters())
            return Tried(type(attention).__name__, count, attention)
        raise ArgumentError(str(failure)) from failure

    def _check_identity(self, point: Point, dimensions: int) -> None:
        """Make sure that start='identity' is kept by a class that is not ours."""
        if self._recipe.arguments.get("start") != "identity" or _is_fake():
            return
        with _undisturbed("cpu"), torch.no_grad():
            attention = self._recipe.build(point.channels, point.names, "cpu", torch.float32)
            attention = _on_trial(self._recipe, attention, "cpu", torch.float32)
            if isinstance(attention, ChannelAttention):
                x = torch.randn(_BATCH, point.channels, *[_SIZES[0]] * dimensions)
                if not torch.equal(attention.eval()(x), x):
                    raise ArgumentError(
                        f"{self._recipe.name} is not the identity under start='identity': its "
                        "logits must be 0 where all parameters of its last_layer are"
                    )


class _FailedError(Exception):
    """An attention cannot be tried, or raised something on an empty feature map."""


def _on_trial(recipe: Recipe, attention: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Return what can be tried; what was built is left alone, as it may belong to somebody."""
    if device == "meta":
        if any(not tensor.is_meta for tensor in _tensors(attention)):
            raise _FailedError(f"{recipe.name} is not built where it is told to")
        return attention.to(dtype)
    try:
        return copy.deepcopy(attention).to(device, dtype)
    except Exception as error:  # others' code
        raise _FailedError(
            f"{recipe.name} cannot be copied, or not be put on {device}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _check_weights(recipe: Recipe, attention: nn.Module) -> None:
    if any(isinstance(p, nn.UninitializedParameter) for p in attention.parameters()):
        raise ArgumentError(f"{recipe.name} is lazy: it must know its shapes when it is built")


def _check_output(
    recipe: Recipe,
    attention: nn.Module,
    channels: int,
    dimensions: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    failure = None
    for size in _SIZES:
        shape = (_BATCH, channels, *[size] * dimensions)
        x = torch.zeros(shape, dtype=dtype, device=device)
        try:
            with torch.no_grad():
                y = attention(x)
        except Exception as error:  # others' code
            failure = failure or (
                f"{recipe.name} fails on a feature map {shape}: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}"
            )
            continue
        got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        if not isinstance(y, Tensor) or (tuple(y.shape), y.dtype) != (shape, dtype):
            raise ArgumentError(
                f"{recipe.name} must map a feature map to one of the same shape and dtype: given "
                f"{shape} {dtype}, it returns {got}"
            )
        return
    raise _FailedError(failure)


def moved(attention: nn.Module, like: Tensor, model: nn.Module, built: set[int]) -> nn.Module:
    """Put a new attention where its site is, in its dtype.

    Args:
        attention: as built for a site.
        like: a weight of the site's.
        model: the network.
        built: ids of the modules and parameters of the attentions before; they are added to.

    Raises:
        ArgumentError: it is, or holds, something that is elsewhere already; or it cannot be put
            there.
    """
    name = type(attention).__name__
    parts = {id(part) for part in (attention, *attention.parameters())}
    taken = built | {id(p) for p in model.parameters()} | {id(m) for m in model.modules()}
    if parts & taken:
        raise ArgumentError(
            f"{name} must be built anew for each site: what was built shares parameters with "
            "another attention, or with the network"
        )
    try:
        attention = attention.to(like.device, like.dtype)
    except Exception as error:  # others' code; and what is on the meta device has no numbers
        raise ArgumentError(
            f"{name} cannot be put on {like.device}: {type(error).__name__}: {error}"
        ) from error
    elsewhere = {str(t.device) for t in _tensors(attention) if t.device != like.device}
    if elsewhere:
        raise ArgumentError(
            f"{name} was built on {elsewhere.pop()}, and its site is on {like.device}"
        )
    # Moving it may have made new ones.
    built |= parts | {id(parameter) for parameter in attention.parameters()}
    return attention


def _is_known(attention: nn.Module) -> bool:
    return type(attention).__module__.startswith(f"{__name__.partition('.')[0]}.")


def _dimensions(model: nn.Module, point: Point) -> int:
    """Tell how many spatial dimensions there are at a site: by the layers there, or nearest."""
    module = point.module.kept.module if is_replacement(point.module) else point.module
    for near in (module, *_outwards(model, point.owner)):
        for layer in near.modules():
            if isinstance(layer, CONVOLUTIONS):
                return len(layer.kernel_size)
            if type(layer) in _DIMENSIONS:
                return _DIMENSIONS[type(layer)]
    return 2


def _outwards(model: nn.Module, name: str) -> Iterator[nn.Module]:
    yield model.get_submodule(name)
    while name:
        name = name.rpartition(".")[0]
        yield model.get_submodule(name)


def _is_fake() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0


def _undisturbed(device: str) -> ExitStack:
    """Give random states back as they were, where anything is drawn."""
    stack = ExitStack()
    if device != "meta" and not _is_fake():
        stack.enter_context(torch.random.fork_rng(devices=[]))
    return stack
