"""The network to measure: by name with an attention, or a trained run with its own."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from composer_attn.errors import ArgumentError, ConfigError, NothingAttendedWarning
from composer_attn.functional import (
    apply_attention,
    attended_modules,
    detach_attention,
    unfuse_attention,
)
from composer_attn.runs.config.config_errors import Mistake, at
from composer_attn.runs.inference.load_run import load_run
from composer_attn.runs.inference.run_folder import CONFIG
from composer_attn.runs.planning.named_network import (
    Shape,
    default_shape,
    find_network,
    is_detector,
    parse_image,
    shape_in,
)


@dataclass(frozen=True)
class Subject:
    """A network without and with attention, both in evaluation mode on the CPU, not fused.

    Attributes:
        name: the network's name.
        attention: the attention, with its arguments, as a label.
        plain: the network without added attention.
        attended: the network with it.
        image: shape of one image, ``(channels, *spatial)``.
    """

    name: str
    attention: str
    plain: nn.Module
    attended: nn.Module
    image: Shape


def find_subject(
    model: str, algorithm: str | None, arguments: Mapping[str, Any], image: str | None
) -> Subject:
    """Build a network by name, or load a trained run.

    Args:
        model: the folder of a run or one of its checkpoints; or anything that
            :func:`~composer_attn.runs.planning.named_network.find_network` accepts.
        algorithm: a registered attention's name. None for a run with attention, or a YAML file
            that names one.
        arguments: the algorithm's arguments; those that are None are ignored.
        image: ``224`` (height and width of three channels) or ``3x224x224``; by default what the
            network was designed for, or trained on.

    Raises:
        ArgumentError: there is no such network, run or algorithm; or a run has attention already.
        ComposerAttnError: as raised by the loading of a run, or by the surgery.
    """
    size = f"3x{image}x{image}" if image is not None and image.isdecimal() else image
    path = Path(model)
    if (path / CONFIG).is_file() or path.suffix == ".pt":
        return _of_run(path, algorithm, arguments, size)
    found = find_network(model, algorithm, arguments, size)
    if is_detector(found.name):
        raise ArgumentError(f"{model} takes a list of images, and cannot be measured on a batch")
    with at("model"):
        torch.manual_seed(0)
        plain = found.build().eval()
    shape = found.image or default_shape(found.name, plain)
    return _attend(found.name, plain, found.algorithm, found.arguments, shape)


def _of_run(
    path: Path, algorithm: str | None, arguments: Mapping[str, Any], size: str | None
) -> Subject:
    run = load_run(path)
    run.check_classifies("benchmark")
    name, network = run.config.run_name, run.network
    shape = shape_in(run.config) if size is None else parse_image(size)
    if shape is None:
        raise ArgumentError(f"the size of {name}'s images is not known: set image, like 224")
    if not attended_modules(network):
        if algorithm is None:
            raise ArgumentError(f"{name} was trained without attention: say which --algorithm")
        found = find_network(run.config.model["name"], algorithm, arguments)
        return _attend(name, network, found.algorithm, found.arguments, shape)
    if algorithm is not None or any(value is not None for value in arguments.values()):
        raise ArgumentError(
            f"{name} was trained with attention, which is measured: leave out --algorithm and its "
            "arguments"
        )
    unfuse_attention(network)
    plain = copy.deepcopy(network)
    kinds = dict.fromkeys(type(m).__name__ for m in detach_attention(plain).values())
    return Subject(name, ", ".join(kinds), plain, network, shape)


def _attend(
    name: str, plain: nn.Module, algorithm: str, arguments: dict[str, Any], shape: Shape
) -> Subject:
    attended = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingAttendedWarning)  # an error here
        plan = apply_attention(attended, algorithm, **arguments)
    if not plan.chosen:
        raise ConfigError(Mistake("algorithm", f"{algorithm} attends no module of {name}"))
    given = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return Subject(name, f"{algorithm} ({given})" if given else algorithm, plain, attended, shape)
