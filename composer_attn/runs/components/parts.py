"""The parts of a network in a config: attention, classifier, or patterns of parameter names."""

from collections.abc import Iterable

from torch import nn

from composer_attn.errors import ArgumentError
from composer_attn.surgery import find_attended
from composer_attn.surgery.names import check_patterns, matches, unwrapped

# The names of parts: the added attention, and the last layer. All others are patterns.
ATTENTION, CLASSIFIER = "attention", "classifier"


def parameters_of(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Return the parameters of a part of a network.

    Args:
        model: the network, or a ComposerClassifier around it.
        part: ``attention``, ``classifier``, or a glob pattern of parameter names, as ``layer4.*``.

    Raises:
        PatternError: a pattern matches no parameter.
        ArgumentError: the network has no classifier: no linear layer or convolution.
    """
    if part == ATTENTION:
        attended = find_attended(model).values()
        return [p for site in attended for p in site.attention.parameters()]
    if part == CLASSIFIER:
        return list(classifier_of(model).parameters())
    named = dict(model.named_parameters())
    check_patterns(f"the part {part!r}: its", [part], list(named))
    return [parameter for name, parameter in named.items() if matches([unwrapped(name)], [part])]


def classifier_of(model: nn.Module) -> nn.Module:
    """Return the last linear layer or convolution outside of attention."""
    attended = find_attended(model).values()
    inside = {layer for site in attended for layer in site.attention.modules()}
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [m for m in model.modules() if isinstance(m, kinds) and m not in inside]
    if not layers:
        raise ArgumentError("the network has no linear layer or convolution, so no classifier")
    return layers[-1]


def as_parts(key: str, parts: object) -> list[str]:
    """Return the names of parts given in a config, as a list.

    Raises:
        ArgumentError: they are not a list of names.
    """
    names = list(parts) if isinstance(parts, Iterable) and not isinstance(parts, str) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ArgumentError(
            f"{key} must be a list of {ATTENTION}, {CLASSIFIER}, or patterns of parameters' names "
            f"like layer4.*; got {parts!r}"
        )
    return names
