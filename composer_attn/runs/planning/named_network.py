"""Find a network, its attention and its image size, by name or in a run's YAML."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from torch import nn
from torchvision import models

from composer_attn.attention import attention_names
from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.components.registry import ALGORITHMS
from composer_attn.runs.config.config_errors import unknown
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.data.cifar import SIZE as CIFAR_SIZE
from composer_attn.runs.models import MODELS, build_network
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.tasks.table import find_task
from composer_attn.runs.tasks.task import WEIGHTS

Shape = tuple[int, ...]
_FRAMES = 16  # frames per clip in the training of torchvision's video networks
_SHAPES: dict[str, Shape] = {"simplified_efficientnet": (3, 56, 56)}
_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
_IMAGE = re.compile(r"[1-9]\d*(x[1-9]\d*){1,3}")


@dataclass(frozen=True)
class NamedNetwork:
    """A network, and the attention to add to it.

    Attributes:
        name: the network's name.
        build: builds it, without weights.
        algorithm: the attention's registered name.
        arguments: the arguments of its ``apply`` and ``plan`` functions that were given.
        image: shape of one image, ``(channels, *spatial)``; None for :func:`default_shape`.
    """

    name: str
    build: Callable[[], nn.Module]
    algorithm: str
    arguments: dict[str, Any]
    image: Shape | None


def find_network(
    model: str, algorithm: str | None, arguments: Mapping[str, Any], image: str | None = None
) -> NamedNetwork:
    """Find a network and its attention.

    Args:
        model: a name as in a run's ``model.name``, the name of one of torchvision's detection,
            segmentation or video networks, or the path of a run's YAML file, which then provides
            model, image size and the algorithm's arguments as defaults.
        algorithm: a registered attention's name; may be None if a YAML file names one.
        arguments: the algorithm's arguments; those that are None are ignored.
        image: image shape, such as ``3x224x224``; by default the one the network was designed for.

    Raises:
        ArgumentError: there is no such network or algorithm.
        ConfigError: the YAML file, or one of the algorithm's arguments, is invalid.
    """
    shape = None if image is None else parse_image(image)
    config = _read(model)
    section = {"name": model} if config is None else _model_in(config)
    name = _choose(algorithm, config)
    given = {} if config is None else dict(config.algorithms.get(name) or {})
    given |= {key: value for key, value in arguments.items() if value is not None}
    mistakes = ALGORITHMS.check_call(name, "algorithm", name, given)
    if mistakes:
        raise ConfigError(*mistakes)
    for of_a_run in ("param_group", "fuse", "backend"):  # not arguments of a surgery
        given.pop(of_a_run, None)
    if shape is None and config is not None:
        shape = shape_in(config)
    build = _builder(section) if config is None else _builder_in(config, section)
    return NamedNetwork(section["name"], build, name, given, shape)


def parse_image(text: str) -> Shape:
    """Parse the shape of an image.

    Raises:
        ArgumentError: it is not a sequence of numbers separated by x.

    Example:
        >>> parse_image("3x224x224")
        (3, 224, 224)
    """
    if not _IMAGE.fullmatch(text):
        raise ArgumentError(f"image must be CHANNELSxHEIGHTxWIDTH, like 3x224x224; got {text!r}")
    return tuple(map(int, text.split("x")))


def is_detector(name: str) -> bool:
    """Return whether a name is that of a detection network, which takes a list of images."""
    return name in models.list_models(module=models.detection)


def default_shape(name: str, network: nn.Module) -> Shape:
    """Return the image shape that a network was designed for, if known, else 3x224x224."""
    if name in _SHAPES:
        return _SHAPES[name]
    if name.startswith("timm/"):
        settings: Any = network.default_cfg  # a dict on all of timm's networks
        return tuple(settings.get("input_size", (3, 224, 224)))
    side = getattr(network, "image_size", None)
    if isinstance(side, int):
        return 3, side, side
    published = list(models.get_model_weights(name)) if name in models.list_models() else []
    size = published[-1].transforms.keywords.get("crop_size", 224) if published else 224
    sides = (size, size) if isinstance(size, int) else tuple(size)
    sides = sides * 2 if len(sides) == 1 else sides
    is_video = name in models.list_models(module=models.video)
    return (3, _FRAMES, *sides) if is_video else (3, *sides)


def shape_in(config: RunConfig) -> Shape | None:
    """Return the shape of a run's images if its dataset section or dataset determines it."""
    if config.train_dataset["name"].startswith("cifar"):
        return 3, CIFAR_SIZE, CIFAR_SIZE
    arguments = _dataset_arguments(config)
    size = arguments.get("size")
    return (arguments.get("channels", 3), size, size) if isinstance(size, int) else None


def _read(model: str) -> RunConfig | None:
    is_path = model.endswith((".yaml", ".yml")) or Path(model).is_file()
    return load_checked(model) if is_path else None


def _choose(algorithm: str | None, config: RunConfig | None) -> str:
    if algorithm is not None:
        if algorithm not in attention_names():
            raise ArgumentError(unknown("algorithm", algorithm, attention_names()))
        return algorithm
    named = [n for n in attention_names() if config is not None and n in config.algorithms]
    if len(named) != 1:
        found = f"{', '.join(named)} are in the file" if named else "none is named"
        valid = " or ".join(attention_names())
        raise ArgumentError(f"say which algorithm: --algorithm {valid}; {found}")
    return named[0]


def _builder(section: dict[str, Any]) -> Callable[[], nn.Module]:
    name = section["name"]
    if name in MODELS:
        bare = {k: v for k, v in section.items() if k not in ("weights", "pretrained")}
        return lambda: build_network(bare)
    if name in _others():
        nothing = {"weights": None}
        if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
            nothing["weights_backbone"] = None
        return lambda: models.get_model(name, **nothing)
    near = get_close_matches(name, [*MODELS, *_others()], n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ArgumentError(f"there is no model, and no file, named {name!r}{hint}")


def _builder_in(config: RunConfig, section: dict[str, Any]) -> Callable[[], nn.Module]:
    """Return what builds a run's network, which may be one that only its task knows."""
    task = find_task(config.task)
    if task is CLASSIFICATION:
        return _builder(section)
    bare = {k: v for k, v in section.items() if k not in WEIGHTS}
    return lambda: cast(nn.Module, task.build_model(bare).module)


def _others() -> list[str]:
    packages = (models.detection, models.segmentation, models.video)
    return [name for package in packages for name in models.list_models(module=package)]


def _model_in(config: RunConfig) -> dict[str, Any]:
    """Return a run's model section, with its data's number of classes if known without reading."""
    found = _CLASSES.get(config.train_dataset["name"])
    found = found or _dataset_arguments(config).get("num_classes")
    task = find_task(config.task)
    return task.with_num_classes(config.model, found) if isinstance(found, int) else config.model


def _dataset_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of a run's training dataset, including defaults."""
    section = config.train_dataset
    parameters = inspect.signature(find_task(config.task).datasets[section["name"]]).parameters
    return {name: parameter.default for name, parameter in parameters.items()} | section
