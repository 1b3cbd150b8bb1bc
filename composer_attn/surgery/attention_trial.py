"""Run a newly built attention outside the network, before any change, to check its output."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention
from composer_attn.errors import ArgumentError, first_line
from composer_attn.surgery.channel_counts import CONVOLUTIONS
from composer_attn.surgery.conversion import convert, is_fake
from composer_attn.surgery.recipe import Recipe
from composer_attn.surgery.sites import CandidateSite
from composer_attn.surgery.stand_ins import is_replacement

# Spatial sizes to try, equal in all dimensions, for attentions that accept only certain sizes.
_SIZES = (8, 7, 14, 16, 28, 32, 56)
_BATCH = 2
_DIMENSIONS: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


@dataclass(frozen=True)
class Tried:
    """Result of trying the attention of a site.

    Attributes:
        kind: name of its class.
        parameters: its number of parameters.
        module: an instance built as it would be at the site.
    """

    kind: str
    parameters: int
    module: nn.Module


class Trials:
    """Tries the attentions that a recipe builds, once for each distinct kind of site.

    Args:
        model: the network, which determines the number of spatial dimensions.
        recipe: builds the attentions.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        self._model, self._recipe = model, recipe
        self._known: dict[object, Tried] = {}

    def at(self, candidate: CandidateSite) -> Tried:
        """Build the attention of a site, on the meta device if possible, and run it.

        Raises:
            ArgumentError: it cannot be built, does not map a feature map to one of the same shape
                and dtype, or is not the identity under ``start="identity"``.
        """
        # The owner may have no parameters, and neither may the whole model.
        owner = self._model.get_submodule(candidate.owner)
        near = next(chain(owner.parameters(), self._model.parameters()), None)
        dtype = torch.get_default_dtype() if near is None else near.dtype
        dimensions = _dimensions(self._model, candidate)
        arguments = repr(self._recipe.arguments_at(candidate.names))
        key = (candidate.channels, dimensions, dtype, arguments)
        if key not in self._known:
            try:
                self._known[key] = self._try(candidate, dimensions, dtype)
            except ArgumentError as error:
                message = f"{error} (at {candidate.name or 'the model itself'})"
                raise type(error)(message) from error
        return self._known[key]

    def _try(self, candidate: CandidateSite, dimensions: int, dtype: torch.dtype) -> Tried:
        recipe, failure = self._recipe, None
        for device in ("meta", "cpu"):
            with _undisturbed(device):
                try:
                    attention = recipe.build(candidate.channels, candidate.names, device, dtype)
                    attention = _on_trial(recipe, attention, device, dtype)
                    _check_weights(recipe, attention)
                    _check_output(recipe, attention, candidate.channels, dimensions, dtype, device)
                except (ArgumentError, _FailedError) as error:
                    failure = error
                    continue
            if not _is_known(attention):
                self._check_identity(candidate, dimensions)
            count = sum(p.numel() for p in attention.parameters())
            return Tried(type(attention).__name__, count, attention)
        raise ArgumentError(str(failure)) from failure

    def _check_identity(self, candidate: CandidateSite, dimensions: int) -> None:
        """Check that a user-defined attention is the identity under start='identity'."""
        if self._recipe.arguments.get("start") != "identity" or is_fake():
            return
        with _undisturbed("cpu"), torch.no_grad():
            attention = self._recipe.build(
                candidate.channels, candidate.names, "cpu", torch.float32
            )
            attention = _on_trial(self._recipe, attention, "cpu", torch.float32)
            if isinstance(attention, ChannelAttention):
                x = torch.randn(_BATCH, candidate.channels, *[_SIZES[0]] * dimensions)
                if not torch.equal(attention.eval()(x), x):
                    raise ArgumentError(
                        f"{self._recipe.name} is not the identity under start='identity': its "
                        "logits must be 0 where all parameters of its last_layer are"
                    )


class _FailedError(Exception):
    """An attention cannot be tried, or raised an exception on the trial input."""


def _on_trial(recipe: Recipe, attention: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Return a module to try; off the meta device a copy, as the original may be in use."""
    if device == "meta":
        if any(not tensor.is_meta for tensor in _tensors(attention)):
            raise _FailedError(f"{recipe.name} is not built on the device that it is given")
        return convert(attention, device, dtype)
    try:
        return convert(copy.deepcopy(attention), device, dtype)
    except Exception as error:  # third-party code
        raise _FailedError(
            f"{recipe.name} cannot be copied or moved to {device}: {type(error).__name__}: {error}"
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
        except Exception as error:  # third-party code
            failure = failure or (
                f"{recipe.name} fails on a feature map {shape}: {type(error).__name__}: "
                f"{first_line(error)}"
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
    """Move a new attention to its site's device and dtype.

    Args:
        attention: as built for a site.
        like: a weight of the site.
        model: the network.
        built: ids of the modules and parameters of all attentions built so far; updated in place.

    Raises:
        ArgumentError: it shares a module or parameter with the network or with another attention,
            or it cannot be moved to that device.
    """
    name = type(attention).__name__
    parts = {id(part) for part in (attention, *attention.parameters())}
    taken = built | {id(p) for p in model.parameters()} | {id(m) for m in model.modules()}
    if parts & taken:
        raise ArgumentError(
            f"a new {name} must be built for each site: this one shares parameters with "
            "another attention, or with the network"
        )
    try:
        attention = convert(attention, like.device, like.dtype)
    except Exception as error:  # third-party code; meta tensors cannot be moved either
        raise ArgumentError(
            f"{name} cannot be moved to {like.device}, the device of its site: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    elsewhere = {str(t.device) for t in _tensors(attention) if t.device != like.device}
    if elsewhere:
        raise ArgumentError(
            f"{name} was built on {elsewhere.pop()}, and its site is on {like.device}"
        )
    # Moving may have replaced the parameters.
    built |= parts | {id(parameter) for parameter in attention.parameters()}
    return attention


def _is_known(attention: nn.Module) -> bool:
    return type(attention).__module__.startswith(f"{__name__.partition('.')[0]}.")


def _dimensions(model: nn.Module, candidate: CandidateSite) -> int:
    """Return the number of spatial dimensions at a site, from the nearest layers."""
    module = candidate.module.kept.module if is_replacement(candidate.module) else candidate.module
    for near in (module, *_outwards(model, candidate.owner)):
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


def _undisturbed(device: str) -> ExitStack:
    """Preserve the random states, on devices where random numbers may be drawn."""
    stack = ExitStack()
    if device != "meta" and not is_fake():
        stack.enter_context(torch.random.fork_rng(devices=[]))
    return stack
