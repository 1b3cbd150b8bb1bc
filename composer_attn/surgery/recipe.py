"""The recipe from which the attention of each site is built."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter

import torch
from torch import nn

from composer_attn.attention.base import ChannelAttention
from composer_attn.attention.signatures import own_parameters, takes
from composer_attn.checks import unknown
from composer_attn.errors import ArgumentError, ComposerAttnError
from composer_attn.surgery.names import as_patterns, check_patterns, matches


@dataclass(frozen=True)
class Recipe:
    """An attention and its arguments.

    Attributes:
        attention: a class, or a function ``(channels, **arguments) -> nn.Module``. If its signature
            has ``device`` and ``dtype``, these are passed, too.
        arguments: by name. The argument named by the attention's attribute ``sized_by`` may be
            ``{pattern: value}``: a site takes the value of the first pattern that matches one of
            its names, or else the attention's default.
    """

    attention: Callable[..., nn.Module]
    arguments: Mapping[str, object]

    @property
    def kind(self) -> type | None:
        """The class of the attention, or None if it is only known once one is built."""
        attention = self.attention
        while isinstance(attention, partial):
            attention = attention.func
        return attention if isinstance(attention, type) else None

    @property
    def name(self) -> str:
        """Name of the attention before one is built."""
        named = self.kind or self.attention
        return getattr(named, "__name__", type(named).__name__)

    @property
    def sized_by(self) -> str:
        """Name of the argument that sizes the attention; empty if none is declared."""
        found = getattr(self.kind or self.attention, "sized_by", "")
        return found if isinstance(found, str) else ""

    def check(self) -> None:
        """Check that the attention accepts every argument and, for channel attentions, its value.

        Raises:
            ArgumentError: it does not.
        """
        table = self._table()
        if table is not None:
            if not table:
                raise ArgumentError(f"{self.sized_by} must have a pattern, as in {{'layer1.*': 3}}")
            as_patterns(f"the keys of {self.sized_by}", table)
        self.check_names()
        if self.kind is None or not issubclass(self.kind, ChannelAttention):
            return  # valid values may depend on the channels, so they are checked at the sites
        plain = {n: v for n, v in self.arguments.items() if n != self.sized_by or table is None}
        for sized in [{}] if table is None else [{self.sized_by: v} for v in table.values()]:
            self._try_values(plain | sized)

    def check_names(self, others: Iterable[str] = ()) -> None:
        """Check that the attention accepts all arguments by name, and that none is missing.

        Args:
            others: names of further arguments that the caller accepts, for the message.

        Raises:
            ArgumentError: an argument is unknown, or a required one is missing.
        """
        parameters = own_parameters(self.attention)
        if parameters is None:
            return
        wrong = [name for name in self.arguments if name not in parameters]
        if wrong:
            valid = (*parameters, *others)
            raise ArgumentError(unknown(f"argument of {self.name}", wrong[0], valid))
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is Parameter.empty and name not in self.arguments
        ]
        if missing:
            raise ArgumentError(f"{self.name} needs the argument {missing[0]!r}")

    def _try_values(self, arguments: Mapping[str, object]) -> None:
        """Build a channel attention on the meta device, to let it validate its arguments."""
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")  # layers without any weights warn
                self.attention(1, **arguments)
        except ComposerAttnError:
            raise
        except Exception:  # one channel may be too few for a layer
            return

    def check_matches(self, sites: Iterable[Iterable[str]]) -> None:
        """Check that every pattern of an argument matches the name of at least one site.

        Raises:
            PatternError: one or more do not.
        """
        names = [name for site in sites for name in site]
        check_patterns(self.sized_by, self._table(), names)

    def arguments_at(self, names: Iterable[str]) -> dict[str, object]:
        """Return the arguments for the site with these names."""
        arguments, table = dict(self.arguments), self._table()
        if table is not None:
            del arguments[self.sized_by]
            found = [value for pattern, value in table.items() if matches(names, [pattern])]
            if found:
                arguments[self.sized_by] = found[0]
        return arguments

    def build(
        self,
        channels: int,
        names: Iterable[str],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> nn.Module:
        """Build the attention of the site with these names, on a device, in a dtype.

        Third-party builders may ignore both: see :func:`.attention_trial.moved`.

        Raises:
            ArgumentError: building fails (the message includes the cause), or does not return a
                module.
        """
        arguments = self.arguments_at(names)
        options = {"device": device, "dtype": dtype}
        given = {name: v for name, v in options.items() if takes(self.attention, name)}
        try:
            with torch.device(device):
                attention = self.attention(channels, **arguments, **given)
        except ComposerAttnError:
            raise
        except Exception as error:  # third-party code may raise anything
            raise ArgumentError(
                f"{self.name} cannot be built for {channels} channels"
                f"{_listed(arguments)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(attention, nn.Module):
            raise ArgumentError(
                f"{self.name} must build a torch.nn.Module; got {type(attention).__name__}"
            )
        return attention

    def _table(self) -> Mapping[str, object] | None:
        value = self.arguments.get(self.sized_by)
        return value if isinstance(value, Mapping) else None


def _listed(arguments: Mapping[str, object]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())
