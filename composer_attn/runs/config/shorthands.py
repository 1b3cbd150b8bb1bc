"""Shorthands in a config, and the meaning of ``null``."""

import re
from collections.abc import Mapping
from fractions import Fraction
from types import UnionType
from typing import Any, Union, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from composer_attn.errors import ArgumentError
from composer_attn.runs.config.annotations import annotations_of
from composer_attn.runs.config.config_errors import Mistake

# Sections {name: ..., argument: ...}, and sections {name: {argument: ...}, ...}.
SINGLE = ("model", "train_dataset", "eval_dataset", "optimizer", "scheduler")
SEVERAL = ("algorithms", "callbacks", "loggers")

_RATIO = re.compile(r"\s*\d+\s*/\s*0*[1-9]\d*\s*")


def named_sections(layer: DictConfig) -> DictConfig:
    """Expand ``model: resnet18`` to ``model: {name: resnet18}``.

    Strings with ``${...}`` are unchanged, as they may refer to a whole section.
    """
    raw: Any = OmegaConf.to_container(layer, resolve=False)  # a dict, since layer is a mapping
    for key in SINGLE:
        value = raw.get(key)
        if isinstance(value, str) and "${" not in value and value != "???":
            layer[key] = {"name": value}
    return layer


def take_out(key: str, below: DictConfig, layer: DictConfig) -> tuple[DictConfig, list[Mistake]]:
    """Remove from the base files the components that a layer sets to null.

    Args:
        key: one of :data:`SEVERAL`.
        below: the config so far, changed in place.
        layer: the layer to be merged into it.

    Returns:
        The layer's section without these, and a mistake for each that is not in ``below``.
    """
    section = OmegaConf.masked_copy(layer, key)
    whole: Any = OmegaConf.to_container(layer, resolve=False)  # a dict, since layer is a mapping
    raw = whole[key]
    if raw is None:
        below[key], section[key] = {}, {}
    mistakes = []
    for name, value in raw.items() if isinstance(raw, dict) else ():
        if value is None:
            del section[key][name]
            if name in below[key]:
                del below[key][name]
            else:
                mistakes.append(nothing_below(f"{key}.{name}", below[key]))
    return section, mistakes


def nothing_below(key: str, there: Mapping[str, Any]) -> Mistake:
    """Return the mistake for a null that removes nothing: it does not mean the defaults."""
    names = ", ".join(map(str, there)) or "nothing"
    message = f"null removes what a base file has, which is {names}; for the defaults write {{}}"
    return Mistake(key, message)


def written_out(arguments: dict[str, Any], build: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component's arguments with ratios like ``1/16`` converted where it takes numbers."""
    types = annotations_of(build) | dict(extra)
    return {name: _number(value, types.get(name, Any)) for name, value in arguments.items()}


def _number(value: Any, annotation: Any) -> Any:
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    takes_numbers = float in members and str not in members
    if takes_numbers and isinstance(value, str) and _RATIO.fullmatch(value):
        return parse_number("a ratio", value)
    if isinstance(value, dict):
        for member in members:
            if isinstance(get_origin(member), type) and issubclass(get_origin(member), Mapping):
                return {k: _number(v, get_args(member)[1]) for k, v in value.items()}
    return value


def parse_number(argument: str, text: str) -> int | float:
    """Parse a count or a fraction.

    Raises:
        ArgumentError: it is neither.

    Example:
        >>> parse_number("latent_channels", "64"), parse_number("latent_channels", "1/16")
        (64, 0.0625)
    """
    try:
        value = Fraction("".join(text.split()))
    except (ValueError, ZeroDivisionError):
        raise ArgumentError(f"{argument} must be a number, or like 1/16; got {text!r}") from None
    return int(value) if value.denominator == 1 else float(value)
