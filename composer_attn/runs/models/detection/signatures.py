"""What a config can set of torchvision's detectors: the arguments that are no modules."""

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from torch import nn

# Arguments of torchvision's classes that YAML cannot express, or that are set for it.
_SET = {
    "self", "backbone", "num_classes", "num_keypoints", "head", "anchor_generator", "size",
    "proposal_matcher", "kwargs", "rpn_anchor_generator", "rpn_head", "box_roi_pool", "box_head",
    "box_predictor", "mask_roi_pool", "mask_head", "mask_predictor", "keypoint_roi_pool",
    "keypoint_head", "keypoint_predictor",
}  # fmt: skip
_SEVERAL = ("min_size",)  # one number, or a list to draw from


def described(
    build: Callable[..., nn.Module], kind: type[nn.Module], own: Mapping[str, tuple[Any, Any]]
) -> Callable[..., nn.Module]:
    """Return a builder with the signature by which a config is checked.

    Args:
        build: builds the network.
        kind: its class, whose arguments it passes on.
        own: type and default of its other arguments.
    """

    def described_build(**arguments: Any) -> nn.Module:
        return build(**arguments)

    passed = {
        name: (_type_of(name, parameter.default), parameter.default)
        for cls in reversed(kind.__mro__)
        if issubclass(cls, nn.Module) and cls is not nn.Module
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name not in _SET and parameter.default is not Parameter.empty
    }
    taken = {**own, **passed}
    described_build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [Parameter(n, Parameter.KEYWORD_ONLY, default=default) for n, (_, default) in taken.items()]
    )
    described_build.__annotations__ = {name: kind for name, (kind, _) in taken.items()}
    return described_build


def _type_of(name: str, default: Any) -> Any:
    number = type(default) in (int, float) and name not in _SEVERAL
    return type(default) if number else Any
