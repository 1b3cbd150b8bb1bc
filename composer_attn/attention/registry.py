"""The registry of attentions by name: the built-in ones and those that a project registers."""

from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points

from torch import nn

from composer_attn.checks import unknown
from composer_attn.errors import ArgumentError

Attention = str | Callable[..., nn.Module]

# Entry-point group in which packages list attentions, as `name = "package.module:attention"`.
ENTRY_POINTS = "composer_attn.attentions"

# In a study, the names of the run without attention and of the one with Composer's own SE.
RESERVED = ("plain", "composer_squeeze_excite")

_registered: dict[str, Callable[..., nn.Module]] = {}


def register_attention(name: str, attention: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register an attention under a name for use in functions, algorithms, YAML and commands.

    Registering a redefinition from the same place in the code (a notebook cell that runs twice)
    replaces the earlier one.

    Args:
        name: a Python identifier, such as ``effective_se``.
        attention: a class, or a function ``(channels, **arguments) -> nn.Module``. The module must
            map ``(N, C, *spatial)`` to the same shape.

    Returns:
        The attention, unchanged.

    Raises:
        ArgumentError: the name is taken by another attention, reserved or not an identifier; or
            ``attention`` is not callable.

    Example:
        >>> from composer_attn import EfficientChannelAttention, register_attention
        >>> register_attention("eca", EfficientChannelAttention).__name__  # as it is already
        'EfficientChannelAttention'
    """
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        raise ArgumentError(
            "an attention's name must be a Python identifier, like effective_se, and not "
            f"{' or '.join(RESERVED)}; got {name!r}"
        )
    _check_callable(attention)
    known = _registered.get(name)
    if known is not None and _identity(known) != _identity(attention):
        raise ArgumentError(
            f"the name {name!r} is already registered for {_origin(known)}: register "
            f"{_origin(attention)} under another name"
        )
    _registered[name] = attention
    return attention


def find_attention(attention: Attention) -> Callable[..., nn.Module]:
    """Return the builder of an attention, given by its registered name or directly.

    Raises:
        ArgumentError: the name is unknown, or two packages claim it; or it is neither a name nor
            callable.
    """
    if not isinstance(attention, str):
        return _check_callable(attention)
    for entry in _entry_points().get(attention, ()):
        register_attention(attention, _load(entry))
    if attention not in _registered:
        raise ArgumentError(
            f"{unknown('attention', attention, attention_names())}. A project's attentions "
            "become known when the module that registers them is imported (composer-attn --import "
            "MODULE)"
        )
    return _registered[attention]


def attention_names() -> list[str]:
    """List the names of all attentions, without importing those of installed packages."""
    return list(dict.fromkeys((*_registered, *_entry_points())))


def name_of(attention: Attention) -> str | None:
    """Return the name under which an attention is registered, or None."""
    if isinstance(attention, str):
        return attention
    return next((name for name, known in _registered.items() if known is attention), None)


def _check_callable(attention: object) -> Callable[..., nn.Module]:
    # A module instance is callable as well, but on feature maps.
    if callable(attention) and not isinstance(attention, nn.Module):
        return attention
    got = repr(attention) if not isinstance(attention, nn.Module) else "a module instance"
    raise ArgumentError(
        "attention must be a registered name, a class, or a function (channels, **arguments) -> "
        f"nn.Module; got {got}"
    )


@cache
def _entry_points() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        found.setdefault(entry.name, []).append(entry)
    return found


def _load(entry: EntryPoint) -> Callable[..., nn.Module]:
    try:
        return entry.load()
    except Exception as error:  # third-party code may raise anything
        package = entry.dist.name if entry.dist else "a package"
        raise ArgumentError(
            f"the attention {entry.name!r} of {package}, {entry.value}, cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def _identity(attention: Callable[..., nn.Module]) -> object:
    """Return a key that identifies a definition: its qualified name if that is unique."""
    if isinstance(attention, partial):
        return _identity(attention.func), attention.args, repr(sorted(attention.keywords.items()))
    name = getattr(attention, "__qualname__", "<lambda>")
    return id(attention) if "<" in name else (attention.__module__, name)  # <lambda>, <locals>


def _origin(attention: Callable[..., nn.Module]) -> str:
    named = attention.func if isinstance(attention, partial) else attention
    name = getattr(named, "__qualname__", type(named).__qualname__)
    return f"{named.__module__}.{name}" + (" with arguments" if named is not attention else "")
