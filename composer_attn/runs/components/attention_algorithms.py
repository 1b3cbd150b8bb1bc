"""The registered attentions as algorithms in a config, by name."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter
from typing import Any

from composer.core import Algorithm

from composer_attn.algorithms import ECA, Attention, SqueezeExcite
from composer_attn.attention import (
    EfficientChannelAttention,
    SqueezeExcitation,
    attention_names,
    find_attention,
)
from composer_attn.attention.signatures import own_parameters
from composer_attn.errors import ArgumentError
from composer_attn.runs.config.annotations import annotations_of
from composer_attn.surgery import Recipe

# Composer's own SE, which a study can compare with the registered attentions.
COMPOSERS = "composer_squeeze_excite"

# Attentions whose algorithms have their own classes, which checkpoints refer to by name.
_CLASSES: dict[object, Callable[..., Algorithm]] = {
    SqueezeExcitation: SqueezeExcite,
    EfficientChannelAttention: ECA,
}


class Attentions(Mapping[str, Callable[..., Algorithm]]):
    """Mapping from attention names to algorithm builders, including attentions registered later.

    Args:
        others: names of other algorithms; an attention registered under one of them is an error.
    """

    def __init__(self, others: Mapping[str, Any]):
        self._others = others

    def __getitem__(self, name: str) -> Callable[..., Algorithm]:
        if name not in self:
            raise KeyError(name)
        if name in self._others:
            raise ArgumentError(
                f"{name!r} is an algorithm of Composer's and a registered attention: register the "
                "attention under another name"
            )
        return algorithm_for(name)

    def __contains__(self, name: object) -> bool:
        return name in attention_names()

    def __iter__(self) -> Iterator[str]:
        return iter(attention_names())

    def __len__(self) -> int:
        return len(attention_names())


def algorithm_for(name: str) -> Callable[..., Algorithm]:
    """Return the builder of an attention's algorithm, with all arguments in its signature.

    Raises:
        ArgumentError: there is no attention of that name, or it cannot be imported.
    """
    attention = find_attention(name)
    if attention in _CLASSES:
        return _CLASSES[attention]

    def build(**arguments: Any) -> Algorithm:
        return Attention(name, **arguments)

    shared = list(inspect.signature(Attention).parameters.values())[1:]
    own = own_parameters(attention)
    if own is not None:  # otherwise the attention takes any keyword
        shared = [p for p in shared if p.kind is not Parameter.VAR_KEYWORD]
    taken = [p.name for p in shared]
    added = [p for name, p in (own or {}).items() if name not in taken]
    added = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in added]
    shown: Any = build  # the type of functions has no __signature__
    shown.__signature__ = inspect.Signature([*added, *shared])
    # The argument that sizes an attention may be {pattern: value}, whatever its own type.
    sized_by = Recipe(attention, {}).sized_by
    types = {n: t for n, t in annotations_of(attention).items() if n in (own or ())}
    types |= {p.name: p.annotation for p in added if isinstance(p.annotation, type)}
    types.pop(sized_by, None)
    build.__annotations__ = types | annotations_of(Attention)
    return build


def class_of(name: str) -> type[Algorithm]:
    """Return the class of an attention's algorithm, which checkpoints refer to by name."""
    build = algorithm_for(name)
    return build if isinstance(build, type) else Attention
