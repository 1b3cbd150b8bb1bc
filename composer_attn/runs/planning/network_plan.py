"""Plan attention for a network, given by name or by a run's YAML, on images of a given size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError, ComposerAttnError
from composer_attn.functional import plan_attention
from composer_attn.runs.config.config_errors import at
from composer_attn.runs.planning.named_network import (
    NamedNetwork,
    Shape,
    default_shape,
    find_network,
    is_detector,
)
from composer_attn.surgery import SurgeryPlan


@dataclass(frozen=True)
class Planned:
    """A plan, and the inputs that it was made for.

    Attributes:
        model: the network's name.
        algorithm: the attention's registered name.
        arguments: the algorithm's arguments that were given.
        image: shape of one image, ``(channels, *spatial)``.
        batch: number of images.
        plan: the plan, with costs.
    """

    model: str
    algorithm: str
    arguments: dict[str, Any]
    image: Shape
    batch: int
    plan: SurgeryPlan


def make_plan(
    model: str,
    algorithm: str | None,
    arguments: Mapping[str, Any],
    image: str | None = None,
    batch: int = 1,
) -> Planned:
    """Plan attention for a network, which is built without weights.

    Args:
        model: a name as in a run's ``model.name``, the name of one of torchvision's detection,
            segmentation or video networks, or the path of a run's YAML file, which then provides
            model, image size and the algorithm's arguments as defaults.
        algorithm: a registered attention's name; may be None if a YAML file names one.
        arguments: the algorithm's arguments; those that are None are ignored.
        image: image shape, such as ``3x224x224``; by default the one the network was designed for.
        batch: number of images.

    Raises:
        ConfigError: the YAML file, the algorithm or one of its arguments is invalid.
        ComposerAttnError: as raised by the planning function.
    """
    whole_number("batch", batch)
    found = find_network(model, algorithm, arguments, image)
    try:
        shape, plan = _plan(found, batch, "meta")
    except ComposerAttnError:
        # Some networks compute with values in their constructor or forward.
        shape, plan = _plan(found, batch, "cpu")
    return Planned(found.name, found.algorithm, found.arguments, shape, batch, plan)


def parse_arguments(texts: list[str]) -> dict[str, Any]:
    """Parse ``argument=value``, with values as in YAML.

    Raises:
        ArgumentError: one of them has a different form.

    Example:
        >>> parse_arguments(["reduction=4", "gate=tanh"])
        {'reduction': 4, 'gate': 'tanh'}
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not name.isidentifier():
            raise ArgumentError(f"arguments must be NAME=VALUE, like reduction=4; got {text!r}")
    return found


def parse_kernel_sizes(texts: list[str] | None) -> int | dict[str, int] | None:
    """Parse one kernel size, or several as ``PATTERN=SIZE``.

    Raises:
        ArgumentError: a size is not a whole number, or there are several without patterns.

    Example:
        >>> parse_kernel_sizes(["layer1.*=3", "layer4.*=7"])
        {'layer1.*': 3, 'layer4.*': 7}
    """
    if not texts:
        return None
    pairs = [text.rpartition("=") for text in texts]
    if all(size.isdecimal() for _, _, size in pairs):
        if all(pattern for pattern, _, _ in pairs):
            return {pattern: int(size) for pattern, _, size in pairs}
        if len(texts) == 1 and texts[0].isdecimal():
            return int(texts[0])
    raise ArgumentError(
        f"kernel_size must be an odd number, or one or more PATTERN=SIZE; got {' '.join(texts)!r}"
    )


def _plan(found: NamedNetwork, batch: int, device: str) -> tuple[Shape, SurgeryPlan]:
    with at("model"), torch.device(device):
        network = found.build()
    shape = found.image or default_shape(found.name, network)
    algorithm, arguments = found.algorithm, found.arguments
    if is_detector(found.name):  # they take a list of images
        images = torch.rand(batch, *shape, device=device)
        return shape, plan_attention(network, algorithm, **arguments, example=(list(images),))
    images = torch.zeros(batch, *shape, device=device)
    return shape, plan_attention(network, algorithm, **arguments, example=images)
