"""What of a recipe can be scaled: the depth and width of its network, the size of its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch

from composer_attn.checks import is_real
from composer_attn.errors import ConfigError
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.models import build_network
from composer_attn.runs.models.efficientnet import PUBLISHED, Scale, scale_of
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.training.network_cost import count_parameters

# The exponent with which a factor of each dimension enters the number of operations.
POWERS = {"depth": 1, "width": 2, "resolution": 2}
# What the builders of torchvision, timm and this package call these factors.
_ARGUMENTS = {
    "depth": ("depth", "depth_mult", "depth_multiplier"),
    "width": ("width", "width_mult", "channel_multiplier", "width_factor"),
}
_SIZES = ("size", "resize")  # of images, in a dataset section
_PROBE = 2.0
_DIGITS = 4  # of a factor in a config
_EXAMPLES = "efficientnet, mobilenet_v2, mobilenet_v3_small, mnasnet, timm/rexnet_100"


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a recipe that can be scaled.

    Attributes:
        factors: for ``depth`` and ``width``, the argument of the network's builder that is their
            factor, and its value in the recipe.
        resolution: whether the datasets have an image size that can be set.
    """

    factors: Mapping[str, tuple[str, float]]
    resolution: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions, in the order of :data:`POWERS`."""
        return (*self.factors, *(["resolution"] if self.resolution else []))


def find_dimensions(config: RunConfig) -> Dimensions:
    """Find out what of a recipe can be scaled.

    A builder's argument is recognized by its name, and by the fact that a larger value makes a
    larger network: builders of torchvision accept arguments that they then ignore.

    Raises:
        ConfigError: the task is another, the network cannot be scaled, or there is only one
            dimension to scale.
    """
    if config.task != CLASSIFICATION.name:
        message = f"networks are scaled for {CLASSIFICATION.name} alone; got {config.task}"
        raise ConfigError(Mistake("task", message))
    _check_starts_untrained(config)
    name = config.model["name"]
    factors = _factors(config.model)
    if not factors:
        wanted = " nor a ".join(f"{kind} ({', '.join(n)})" for kind, n in _ARGUMENTS.items())
        message = f"{name} cannot be scaled: its builder takes neither a {wanted}{_instead(name)}"
        raise ConfigError(Mistake("model.name", message))
    dimensions = Dimensions(factors, _has_size(config))
    if len(dimensions.names) < 2:
        message = (
            f"only the {dimensions.names[0]} of {name} on {config.train_dataset['name']} can be "
            "scaled, which leaves nothing to search"
        )
        raise ConfigError(Mistake("model.name", message))
    return dimensions


def scaled(config: RunConfig, dimensions: Dimensions, scale: Scale) -> RunConfig:
    """Return a recipe with its dimensions multiplied by factors.

    Args:
        config: the recipe.
        dimensions: those of the recipe.
        scale: factors relative to the recipe; ignored for dimensions that it does not have.
    """
    model = dict(config.model)
    for name, (argument, start) in dimensions.factors.items():
        model[argument] = round(start * getattr(scale, name), _DIGITS)
    if not dimensions.resolution:
        return replace(config, model=model)
    return replace(
        config,
        model=model,
        train_dataset=_resized(config.train_dataset, scale.resolution),
        eval_dataset=config.eval_dataset and _resized(config.eval_dataset, scale.resolution),
    )


def _check_starts_untrained(config: RunConfig) -> None:
    """Raise if the recipe starts from weights, which fit one size of the network."""
    keys = [f"model.{key}" for key in ("weights", "pretrained") if config.model.get(key)]
    keys += ["load_path"] if config.load_path else []
    message = "weights fit one size of the network only: a search trains every size from scratch"
    if keys:
        raise ConfigError(*(Mistake(key, message) for key in keys))


def _factors(section: dict[str, Any]) -> dict[str, tuple[str, float]]:
    if section["name"] == "efficientnet":
        scale = scale_of(section)
        assert scale is not None
        return {name: (name, getattr(scale, name)) for name in _ARGUMENTS}
    found = {name: _find_argument(section, _ARGUMENTS[name]) for name in _ARGUMENTS}
    return {name: factor for name, factor in found.items() if factor is not None}


def _find_argument(section: dict[str, Any], names: Sequence[str]) -> tuple[str, float] | None:
    """Return the first of some arguments that scales a network, and its value in the section."""
    size = _size(section)
    for name in names:
        start = section.get(name, 1.0)
        if size and is_real(start) and _size({**section, name: start * _PROBE}) > size:
            return name, float(start)
    return None


def _size(section: dict[str, Any]) -> int:
    """Count the parameters of a section's network; 0 if it refuses its arguments."""
    try:
        with torch.device("meta"):
            return count_parameters(build_network(section))
    except Exception:  # third-party builders may raise anything
        return 0


def _instead(name: str) -> str:
    if name in PUBLISHED:
        depth, width, _ = PUBLISHED[name]
        return f"; instead, model: {{name: efficientnet, depth: {depth:g}, width: {width:g}}}"
    if name.startswith("mnasnet"):
        return "; instead, model: {name: mnasnet, width_mult: 1.0}"
    return f". Networks that can be scaled: {_EXAMPLES}, ..."


def _has_size(config: RunConfig) -> bool:
    sections = [s for s in (config.train_dataset, config.eval_dataset) if s]
    return all("size" in _parameters(section) for section in sections)


def _parameters(section: dict[str, Any]) -> Mapping[str, Any]:
    return signature(CLASSIFICATION.datasets[section["name"]]).parameters


def _resized(section: dict[str, Any], factor: float) -> dict[str, Any]:
    parameters = _parameters(section)
    sizes = {key: section.get(key, parameters[key].default) for key in _SIZES if key in parameters}
    return section | {key: round(size * factor) for key, size in sizes.items()}
