"""The options that describe an attention, shared by the commands that add one to a network."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from composer_attn.cli.command import refusing

Algorithm = Annotated[
    str | None, typer.Option(help="An attention's name, like eca or squeeze_excite.")
]
_Patterns = Annotated[list[str] | None, typer.Option(help="Glob of names; repeatable.")]
_Text = Annotated[str | None, typer.Option()]
_Number = Annotated[float | None, typer.Option()]
_Yes = Annotated[bool | None, typer.Option()]

_OWN = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ARGUMENT=VALUE]...", help="The attention's arguments, like reduction=4."
    ),
]
_OPTIONS: dict[str, Any] = {
    "placement": Annotated[
        str | None, typer.Option(help="conv, norm, residual, pre, post, identity.")
    ],
    "min_channels": Annotated[int | None, typer.Option()],
    "latent_channels": Annotated[str | None, typer.Option(help="Like 64 or 1/16.")],
    "kernel_size": Annotated[
        list[str] | None, typer.Option(help="Odd, or PATTERN=SIZE; repeatable.")
    ],
    "gamma": _Number,
    "b": _Number,
    "include": _Patterns,
    "exclude": _Patterns,
    "gate": _Text,
    "squeeze": _Text,
    "start": _Text,
    "bias": _Yes,
    "replace": _Yes,
}


def takes_attention(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of an attention, which it receives as one dict, ``arguments``.

    Args:
        command: a function with a parameter ``arguments``. Those not given are None.
    """
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in {"own": _OWN, **_OPTIONS}.items()
    ]
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        kept = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += own if parameter.name == "arguments" else [kept]

    @functools.wraps(command)
    def parsed(**given: Any) -> None:
        texts = given.pop("own")
        options = {name: given.pop(name) for name in _OPTIONS}
        with refusing():
            arguments = _parse(options, texts)
        command(**given, arguments=arguments)

    # What typer reads.
    vars(parsed)["__signature__"] = inspect.Signature(parameters)
    parsed.__annotations__ = {each.name: each.annotation for each in parameters}
    return parsed


def _parse(options: dict[str, Any], texts: list[str] | None) -> dict[str, Any]:
    from composer_attn.runs.config.shorthands import parse_number
    from composer_attn.runs.planning.network_plan import parse_arguments, parse_kernel_sizes

    latent = options["latent_channels"]
    options["latent_channels"] = latent and parse_number("latent_channels", latent)
    options["kernel_size"] = parse_kernel_sizes(options["kernel_size"])
    return options | parse_arguments(texts or [])
