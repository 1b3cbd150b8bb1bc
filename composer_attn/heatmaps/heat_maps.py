"""Grad-CAM maps of images, for plain, attended and fused networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError, ModelError, first_line
from composer_attn.extras import naming_the_extra
from composer_attn.heatmaps.layers import choose_layer, forward_shapes
from composer_attn.heatmaps.undisturbed import as_in_evaluation, forward_of

Targets = int | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class HeatMaps:
    """The maps of a batch of images, and the network's outputs for it.

    Attributes:
        maps: ``(N, H, W)`` in [0, 1], of the height and width of the images. The largest value of
            each map is 1, or 0 if nothing in the image speaks for its class.
        targets: ``(N,)``, the class that each map is for.
        predictions: ``(N,)``, the class with the largest output.
        logits: ``(N, classes)``, the outputs of the network.
        layer: name of the module whose feature map was used.
    """

    maps: Tensor
    targets: Tensor
    predictions: Tensor
    logits: Tensor
    layer: str

    @property
    def probabilities(self) -> Tensor:
        """The softmax of the outputs, ``(N, classes)``."""
        return self.logits.softmax(1)


def heat_maps(
    model: nn.Module, images: Tensor, targets: Targets = None, layer: str | None = None
) -> HeatMaps:
    """Compute where in each image a network sees a class (Grad-CAM).

    The channels of a layer's feature map are added up, each weighted by the mean over space of the
    gradient of the class's output with respect to it. What remains above zero speaks for the class;
    it is resized bilinearly to the image, and divided by its maximum. The computation is captum's
    ``LayerGradCam``; the method is that of Selvaraju et al., `Grad-CAM
    <https://arxiv.org/abs/1610.02391>`_, 2017.

    The network computes as in evaluation and is left as it was, also after an error: its modes,
    gradients and hooks. Its parameters may be frozen. A fused network gives the same maps as an
    unfused one, up to rounding.

    Args:
        model: a classifier that returns logits ``(N, classes)``, or a ComposerModel with one.
        images: ``(N, channels, H, W)``, as the network takes them, on its device.
        targets: the class to explain: one for all images, or one for each; by default, the
            predicted one.
        layer: name of the module whose feature map ``(N, C, h, w)`` is used. By default, the last
            one whose output has at least 4 x 4 positions; if there is none, the last of those with
            the most positions. Where a module is called several times, its last call counts.

    Returns:
        The maps, with the outputs of the network and the name of the layer.

    Raises:
        ArgumentError: the images are not four-dimensional, or the network fails on them; there is
            no such layer, its output is not a feature map, or the class does not depend on it; or
            ``targets`` has the wrong number or range.
        MissingExtraError: captum is not installed.
        ModelError: no module returns a feature map, or the output is not ``(N, classes)``.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from composer_attn import apply_eca, fuse_attention, heat_maps
        >>> model = resnet18(num_classes=10)
        >>> _ = apply_eca(model), fuse_attention(model, backend="reference")
        >>> found = heat_maps(model, torch.randn(2, 3, 128, 96), targets=[3, 7])
        >>> found.maps.shape, found.layer, found.targets.tolist()
        (torch.Size([2, 128, 96]), 'layer3', [3, 7])
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got a {type(model).__name__}")
    _check_images(images)
    network, forward = forward_of(model)
    with as_in_evaluation(network):
        images = images.detach().clone()  # an ordinary tensor, also of one from inference mode
        logits, shapes = _run(network, forward, images)
        name, module = choose_layer(network, shapes, layer)
        predictions = logits.argmax(1)
        chosen = predictions if targets is None else _as_classes(targets, logits)
        maps = _grad_cam(forward, name, module, images, chosen)
    return HeatMaps(maps, chosen, predictions, logits, name)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ArgumentError(
            f"images must be a tensor (N, channels, H, W); got a {type(images).__name__}"
        )
    if images.dim() != 4 or not images.numel():
        hint = "; for one image, pass image[None]" if images.dim() == 3 else ""
        raise ArgumentError(
            "images must be (N, channels, H, W), without empty dimensions; got "
            f"{tuple(images.shape)}{hint}"
        )
    if not images.is_floating_point():
        dtype = str(images.dtype).removeprefix("torch.")
        raise ArgumentError(
            f"images must be floating point, normalized as the network expects; got {dtype}"
        )


def _run(
    network: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    """Return the logits of images, and the shape of each module's output."""
    try:
        with torch.no_grad():
            logits, shapes = forward_shapes(network, lambda: forward(images))
    except Exception as error:  # the network is third-party code
        dtype = str(images.dtype).removeprefix("torch.")
        raise ArgumentError(
            f"the network fails on images {tuple(images.shape)}, {dtype} on {images.device}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the network's output must be logits (N, classes), for these images ({len(images)}, "
            f"classes); got {found}"
        )
    return logits, shapes


def _as_classes(targets: int | Sequence[int] | Tensor, logits: Tensor) -> Tensor:
    """Return the class of each image ``(N,)``, on the device of the logits."""
    count, classes = logits.shape
    given = targets.tolist() if isinstance(targets, Tensor) else targets
    listed = list(given) if isinstance(given, Sequence) else [given] * count
    if len(listed) != count:
        raise ArgumentError(
            f"targets must be one class, or one for each of the {count} images; got {len(listed)}"
        )
    found = [whole_number("targets", target, 0, classes - 1) for target in listed]
    return torch.tensor(found, device=logits.device)


def _grad_cam(
    forward: Callable[[Tensor], Tensor],
    name: str,
    module: nn.Module,
    images: Tensor,
    targets: Tensor,
) -> Tensor:
    """Return maps ``(N, H, W)`` of the targets, from the feature map of a module."""
    with naming_the_extra("a heat map"):
        from captum.attr import LayerGradCam
    try:
        small = LayerGradCam(forward, module).attribute(images, targets, relu_attributions=True)
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error):
            raise
        raise ArgumentError(
            f"no heat map can be computed for the layer {name!r}: the network's output does not "
            "depend on it"
        ) from error
    maps = F.interpolate(small.detach(), images.shape[2:], mode="bilinear", align_corners=False)
    maps = maps[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, torch.ones_like(largest))
