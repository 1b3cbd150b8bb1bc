"""The variants of a study as text: ``plain``, ``eca:kernel_size=3``, ``NAME=eca:kernel_size=3``."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from composer_attn.attention import attention_names
from composer_attn.errors import ArgumentError
from composer_attn.runs.components.attention_algorithms import COMPOSERS
from composer_attn.runs.components.registry import ALGORITHMS
from composer_attn.runs.config.config_errors import foreign, unknown

PLAIN = "plain"
_SHORT = {"se": "squeeze_excite"}
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class VariantSpec:
    """One requested variant.

    Attributes:
        attention: ``plain``, or the name of its attention.
        arguments: arguments of the attention.
        given_name: the name that the user gave it, if any.
    """

    attention: str
    arguments: dict[str, Any] = field(default_factory=dict)
    given_name: str | None = None

    @property
    def name(self) -> str:
        """Its name: the given one, or that of its attention, with its arguments."""
        arguments = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return self.given_name or self.attention + (f" ({arguments})" if arguments else "")

    @property
    def slug(self) -> str:
        """Its name in paths."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_.")


def attentions() -> list[str]:
    """List the attentions that a config can name: the registered ones and Composer's own."""
    return [*attention_names(), COMPOSERS]


def split_variants(text: str) -> list[str]:
    """Split a list of variants at its commas, apart from those between arguments.

    Example:
        >>> split_variants("plain,eca:kernel_size=3,start=identity,wide=eca:kernel_size=9")
        ['plain', 'eca:kernel_size=3,start=identity', 'wide=eca:kernel_size=9']
    """
    specs: list[str] = []
    for part in _at_commas(text):
        if specs and ":" in specs[-1] and _is_argument(part):
            specs[-1] += f",{part}"
        else:
            specs.append(part.strip())
    return specs


def parse_variants(texts: Sequence[str]) -> list[VariantSpec]:
    """Parse ``ATTENTION``, ``ATTENTION:ARGUMENT=VALUE,...``, and the same after ``NAME=``.

    Values are as in YAML. ``se`` is short for ``squeeze_excite``.

    Raises:
        ArgumentError: an attention is unknown, a text has another form, a name is given twice or
            cannot name a folder, or there is no variant.

    Example:
        >>> parse_variants(["ends=se:placement=residual"])[0].arguments
        {'placement': 'residual'}
    """
    specs = [_parse(text) for text in texts]
    if len({spec.name for spec in specs}) < len(specs) or not specs:
        raise ArgumentError(f"variants must be different names; got {','.join(texts)!r}")
    slugs = [spec.slug for spec in specs]
    for spec in specs:
        if not spec.slug or slugs.count(spec.slug) > 1:
            raise ArgumentError(
                f"the name of a variant is also that of its folder, and must differ from the "
                f"others in its letters and digits; got {spec.name!r}"
            )
    return specs


def _parse(text: str) -> VariantSpec:
    head, colon, tail = text.partition(":")
    given, equals, attention = head.rpartition("=")
    attention = attention.strip()
    known = [PLAIN, *attentions()]
    if attention not in known:
        attention = _SHORT.get(attention, attention)
    if attention not in known:
        raise ArgumentError(unknown("variant", attention, known))
    if equals and not given.strip():
        raise ArgumentError(f"a variant must be like NAME=ATTENTION; got {text!r}")
    arguments = _arguments(text, tail) if colon else {}
    if attention == PLAIN and arguments:
        raise ArgumentError(f"plain has no attention, and takes no arguments; got {text!r}")
    arguments = ALGORITHMS.write_out(attention, arguments) if arguments else {}
    return VariantSpec(attention, arguments, given.strip() or None)


def _arguments(text: str, tail: str) -> dict[str, Any]:
    parts = [part.strip() for part in _at_commas(tail)]
    if not all(re.fullmatch(r"[\w.]+=.*", part, re.DOTALL) for part in parts):
        raise ArgumentError(
            "a variant with arguments must be like squeeze_excite:placement=residual,"
            f"latent_channels=1/16; got {text!r}"
        )
    try:
        found: Any = OmegaConf.to_container(OmegaConf.from_dotlist(parts))
    except Exception as error:  # OmegaConf also raises built-in exceptions
        raise ArgumentError(f"arguments of variant {text!r}: {foreign(error)}") from None
    return found


def _is_argument(part: str) -> bool:
    """Whether a part continues the arguments of the variant before it."""
    name, equals, value = part.strip().partition("=")
    head = value.partition(":")[0].strip()
    return bool(equals) and name.isidentifier() and head not in (PLAIN, *attentions(), *_SHORT)


def _at_commas(text: str) -> Iterator[str]:
    """Split at commas that are outside of brackets and quotation marks."""
    depth, quote, start = 0, "", 0
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth <= 0:
            yield text[start:index]
            start = index + 1
    yield text[start:]
