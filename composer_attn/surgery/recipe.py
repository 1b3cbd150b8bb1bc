"""How to build the attention of each site."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from composer_attn.errors import ArgumentError
from composer_attn.surgery.names import as_patterns, check_patterns, matches

# What may differ from site to site: {pattern: value}.
_BY_PATTERN = ("kernel_size", "latent_channels")


@dataclass(frozen=True)
class Recipe:
    """A kind of attention and its arguments.

    Attributes:
        attention: the class; called with ``channels``, the arguments, ``device`` and ``dtype``.
        arguments: by name. ``kernel_size`` and ``latent_channels`` may be ``{pattern: value}``: a
            site takes the value of the first pattern that matches one of its names, or else the
            class's default.
    """

    attention: type[nn.Module]
    arguments: Mapping[str, object]

    def check(self) -> None:
        """Make sure that every argument is one that the attention takes.

        Raises:
            ArgumentError: one is not.
        """
        for argument, table in self._tables():
            if not table:
                raise ArgumentError(f"{argument} must have a pattern, as in {{'layer1.*': 3}}")
            as_patterns(f"the keys of {argument}", table)
        plain = {n: v for n, v in self.arguments.items() if n not in dict(self._tables())}
        self.attention(1, **plain, device="meta")
        for argument, table in self._tables():
            for value in table.values():
                self.attention(1, **plain, **{argument: value}, device="meta")

    def check_matches(self, sites: Iterable[Iterable[str]]) -> None:
        """Make sure that every pattern of an argument matches one of the sites' names.

        Raises:
            PatternError: one or more do not.
        """
        names = [name for site in sites for name in site]
        for argument, table in self._tables():
            check_patterns(argument, table, names)

    def build(self, channels: int, names: Iterable[str], **options) -> nn.Module:
        """Build the attention of the site that goes by these names."""
        arguments = dict(self.arguments)
        for argument, table in self._tables():
            del arguments[argument]
            found = [value for pattern, value in table.items() if matches(names, [pattern])]
            if found:
                arguments[argument] = found[0]
        return self.attention(channels, **arguments, **options)

    def _tables(self) -> list[tuple[str, Mapping]]:
        found = ((name, self.arguments.get(name)) for name in _BY_PATTERN)
        return [(name, value) for name, value in found if isinstance(value, Mapping)]
