"""Keyword arguments shared by many functions, declared once and shown in all signatures.

A function takes them as ``**keywords: Unpack[Keywords]``, which type checkers and editors support
(PEP 692), and passes them on to the functions that define the defaults. :func:`signed` expands them
for inspection at run time: ``help()``, ``inspect.signature``, the check of a run's YAML.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from inspect import Parameter
from typing import Any, TypeVar, get_type_hints

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Supplied by surgery, besides the channels, to attentions that accept them.
_SUPPLIED = ("device", "dtype")
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def signed(
    keywords: type, *sources: Callable[..., Any], free: bool = False
) -> Callable[[_Function], _Function]:
    """Expand a function's ``**keywords`` in its visible signature and annotations.

    Args:
        keywords: the ``TypedDict`` that declares them.
        sources: functions or classes that define their defaults; the first match is used.
        free: whether other keywords are accepted, too.
    """

    def sign(function: _Function) -> _Function:
        signature = inspect.signature(function)
        *parameters, rest = signature.parameters.values()
        hints = get_type_hints(keywords)
        defaults = {name: _default(name, sources) for name in hints}
        shared = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hint)
            for name, hint in hints.items()
        ]
        ending = [rest] if free else []
        shown: Any = function  # the type of functions has no __signature__
        shown.__signature__ = signature.replace(parameters=[*parameters, *shared, *ending])
        own = {n: a for n, a in function.__annotations__.items() if n != rest.name}
        function.__annotations__ = own | hints
        return function

    return sign


def own_parameters(attention: Callable[..., Any]) -> dict[str, Parameter] | None:
    """Return an attention's parameters besides those that surgery supplies; None if open-ended.

    For a class that passes ``**options`` on, this includes the parameters of its base classes.
    """
    if isinstance(attention, partial) and not attention.args:
        inner = own_parameters(attention.func)
        if inner is None:
            return None
        given = {n: v for n, v in attention.keywords.items() if n in inner}
        return inner | {n: inner[n].replace(default=v) for n, v in given.items()}
    found: dict[str, Parameter] = {}
    for signature in _signatures(attention):
        parameters = list(signature.parameters.values())
        channels = [p for p in parameters if p.kind in _POSITIONAL][:1]
        own = [p for p in parameters if p not in channels and p.kind not in _VARIABLE]
        found |= {p.name: p for p in own if p.name not in (*_SUPPLIED, *found)}
        if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
            return found
    return None


def _signatures(attention: Callable[..., Any]) -> Iterator[inspect.Signature]:
    with suppress(TypeError, ValueError):  # built-ins may have no signature
        yield inspect.signature(attention)
        for cls in attention.__mro__[1:] if isinstance(attention, type) else ():
            yield inspect.signature(cls)


def takes(attention: Callable[..., Any], name: str) -> bool:
    """Return whether an attention's signature has a parameter of this name."""
    try:
        return name in inspect.signature(attention).parameters
    except (TypeError, ValueError):
        return False


def _default(name: str, sources: tuple[Callable[..., Any], ...]) -> Any:
    for source in sources:
        parameter = inspect.signature(source).parameters.get(name)
        if parameter is not None:
            return parameter.default
    raise TypeError(f"no source defines a default for {name}")
