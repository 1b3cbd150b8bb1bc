"""Build a detector, with metrics, from the model section of a config."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.runs.models.detection import published, with_backbone
from composer_attn.runs.models.detection.average_precision import box_metrics, mask_metrics
from composer_attn.runs.models.detection.composer_detector import Detector
from composer_attn.runs.models.detection.keypoint_precision import keypoint_metrics
from composer_attn.runs.models.weight_files import Files
from composer_attn.runs.models.weights import is_file

_ALL = {**published.BUILDERS, **with_backbone.BUILDERS}
_MASKS = ("maskrcnn", "mask_rcnn")
_KEYPOINTS = ("keypointrcnn", "keypoint_rcnn")

Section = Mapping[str, Any]


def _named(beginnings: tuple[str, ...], of: bool = True) -> dict[str, Callable[..., nn.Module]]:
    return {name: build for name, build in _ALL.items() if name.startswith(beginnings) == of}


DETECTORS = _named((*_MASKS, *_KEYPOINTS), of=False)
MASK_NETWORKS = _named(_MASKS)
KEYPOINT_NETWORKS = _named(_KEYPOINTS)

# Arguments of a model section besides the network's own.
MODEL_ARGUMENTS = {"weights": str | None, "weights_backbone": str | None}


def num_classes_of(section: Section) -> int:
    """Return the number of classes of objects: that of the section, or the network's default."""
    given = section.get("num_classes")
    entry = published.PUBLISHED.get(section["name"])
    default = entry.classes if entry else 90
    return default if given is None else given


def with_num_classes(section: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Return a model section with the data's number of classes, if it does not set one.

    With published weights of the whole network the number that they were trained for is kept.
    """
    weights = section.get("weights")
    keeps = weights is not None and not is_file(weights)
    if keeps or section.get("num_classes") is not None:
        return section
    return {**section, "num_classes": num_classes}


def check_weights(section: Section) -> None:
    """Check that the weights of a model section exist.

    Raises:
        ArgumentError: there is no such file, or none of this name is published.
    """
    name, weights, backbone = (
        section["name"],
        section.get("weights"),
        section.get("weights_backbone"),
    )
    if weights is not None and backbone is not None:
        raise ArgumentError("weights are those of the backbone, too: leave out weights_backbone")
    for given in (weights, backbone):
        if given is not None and is_file(given) and not Path(given).is_file():
            raise ArgumentError(f"there is no file {given!r}")
    if weights is not None and not is_file(weights):
        if name not in published.PUBLISHED:
            raise ArgumentError(f"weights of {name} must be a file; got {weights!r}")
        published.named_weights(name, weights)
    if backbone is not None and not is_file(backbone):
        if name in published.PUBLISHED:
            published.named_weights(published.PUBLISHED[name].backbone, backbone)
        else:
            with_backbone.check_published(section.get("backbone", "resnet50"), backbone)


def arguments_by_weights(section: Section) -> dict[str, Any]:
    """Return the arguments of a network that the weights of its section set by themselves."""
    name, weights, backbone = (
        section["name"],
        section.get("weights"),
        section.get("weights_backbone"),
    )
    if name in published.PUBLISHED:
        return published.set_by_weights(name, weights, backbone)
    return {"frozen_norms": True} if weights is not None or backbone is not None else {}


def build_network(section: Section) -> nn.Module:
    """Build the network of a section; weights in files are not loaded yet.

    Raises:
        ArgumentError: an argument is invalid.
    """
    whole_number("num_classes", num_classes_of(section))
    _check_sizes(section.get("min_size"))
    if section["name"] in published.PUBLISHED:
        return published.build_published(**section)
    return with_backbone.build_with_backbone(**section)


def build_detector(section: Section) -> Detector:
    """Build the network of a section, with average precision of boxes.

    Args:
        section: ``{name, num_classes, weights, weights_backbone, ...}``; ``num_classes`` counts
            the classes of objects, without the background; the rest are the network's own
            arguments.

    Raises:
        ArgumentError: an argument is invalid.
        ImportError: timm or faster-coco-eval is needed, and not installed.
    """
    return Detector(build_network(section), box_metrics(), _files(section))


def build_mask_network(section: Section) -> Detector:
    """Build the network of a section, with average precision of boxes and masks."""
    return Detector(build_network(section), mask_metrics(), _files(section))


def build_keypoint_network(section: Section) -> Detector:
    """Build the network of a section, with average precision of boxes and keypoints."""
    points = whole_number("num_keypoints", section.get("num_keypoints", 17))
    return Detector(build_network(section), keypoint_metrics(points), _files(section))


def _check_sizes(sizes: Any) -> None:
    given = [sizes] if not isinstance(sizes, (list, tuple)) else sizes
    if sizes is not None and not (given and all(type(s) is int and s >= 1 for s in given)):
        raise ArgumentError(
            "min_size must be a whole number of pixels, or a list of some to draw from in "
            f"training; got {sizes!r}"
        )


def _parts(section: Section) -> tuple[str, str | None, str | None]:
    """Return the network's name, its weights and those of its backbone."""
    return section["name"], section.get("weights"), section.get("weights_backbone")


def _files(section: Section) -> Files:
    _, *given = _parts(section)
    return Files(*(path if path is not None and is_file(path) else None for path in given))
