"""From an image file to what a trained network sees: a run's evaluation transform, by itself."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import cifar
from composer_attn.runs.data.digits import digits
from composer_attn.runs.data.image_folder import image_folder
from composer_attn.runs.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    build_transform,
    to_rgb,
)
from composer_attn.runs.data.mds import mds
from composer_attn.runs.data.named_datasets import NAMED_DATASETS

# Height and width of the handwritten digits of scikit-learn, which are enlarged afterwards.
_DIGIT = 8


@dataclass(frozen=True)
class Preprocessing:
    """Turn a PIL image into a normalized tensor ``(3, size, size)``, as a run's evaluation does.

    The shorter side is resized (bilinear, antialiased), the middle cut out, the bytes normalized by
    channel.

    Attributes:
        resize: pixels of the shorter side, first.
        crop: height and width, in pixels, of the middle that is cut out of it.
        size: height and width, in pixels, of what the network sees: ``crop``, or what that is
            enlarged to in the end.
        mean: of each channel, in units of the brightest value.
        std: likewise.
        gray: whether colours are taken out first.
        refusal: why no image can be prepared; empty where one can.

    Example:
        >>> from PIL import Image
        >>> from composer_attn.runs.data.preprocessing import Preprocessing
        >>> half = Preprocessing(resize=256, crop=224, size=224, mean=(0.5,) * 3, std=(0.25,) * 3)
        >>> image = half(Image.new("RGB", (640, 480), "white"))
        >>> image.shape, image.unique().tolist()
        (torch.Size([3, 224, 224]), [2.0])
    """

    resize: int
    crop: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray: bool = False
    refusal: str = ""

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the image as the network sees it, float32.

        Raises:
            ArgumentError: the run's data are no images, or the brightest value is not known.
        """
        if self.refusal:
            raise ArgumentError(self.refusal)
        image = to_rgb(image)
        if self.gray:
            image = image.convert("L").convert("RGB")
        pixels = build_transform("center_crop", self.crop, self.resize)(image)
        normalized = Normalize(self.mean, self.std)(pixels[None])
        if self.size != self.crop:
            shape = (self.size, self.size)
            normalized = F.interpolate(normalized, shape, mode="bilinear", align_corners=False)
        return normalized[0]

    def as_json(self) -> dict[str, Any]:
        """Return the attributes, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Preprocessing":
        """Make one of what :meth:`as_json` returned.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(
                resize=int(values["resize"]),
                crop=int(values["crop"]),
                size=int(values["size"]),
                mean=tuple(float(value) for value in values["mean"]),
                std=tuple(float(value) for value in values["std"]),
                gray=bool(values.get("gray", False)),
                refusal=str(values.get("refusal", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a preprocessing of images: {values!r:.80}") from error


def preprocessing_of(section: Mapping[str, Any]) -> Preprocessing:
    """Return what prepares an image for a network that was trained on a config's dataset.

    Nothing is drawn at random, whatever the section's augmentation, and its data need not be there.

    Raises:
        ArgumentError: nothing is known of the dataset.
    """
    name = section.get("name")
    if name not in _BY_DATASET:
        raise ArgumentError(f"it is not known how to prepare an image for {name!r}")
    return _BY_DATASET[name](section)


def _photos(build: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Preprocessing]:
    def of(section: Mapping[str, Any]) -> Preprocessing:
        defaults = inspect.signature(build).parameters
        size, resize = (section.get(n, defaults[n].default) for n in ("size", "resize"))
        mean, std = section.get("mean") or IMAGENET_MEAN, section.get("std") or IMAGENET_STD
        # A training section alone may crop more than its resize, which then says nothing.
        return Preprocessing(max(resize, size), size, size, tuple(mean), tuple(std))

    return of


def _cifar(section: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(cifar.SIZE, cifar.SIZE, cifar.SIZE, cifar.MEAN, cifar.STD)


def _digits(section: Mapping[str, Any]) -> Preprocessing:
    size = section.get("size", inspect.signature(digits).parameters["size"].default)
    return Preprocessing(_DIGIT, _DIGIT, size, (0.5,) * 3, (0.5,) * 3, gray=True)


def _synthetic(section: Mapping[str, Any]) -> Preprocessing:
    refusal = "the run was trained on synthetic data, which has no preprocessing of images"
    return Preprocessing(0, 0, 0, (), (), refusal=refusal)


_BY_DATASET: dict[Any, Callable[[Mapping[str, Any]], Preprocessing]] = {
    "cifar10": _cifar,
    "cifar100": _cifar,
    "digits": _digits,
    "image_folder": _photos(image_folder),
    "mds": _photos(mds),
    "synthetic": _synthetic,
    **{name: _photos(build) for name, build in NAMED_DATASETS.items()},
}
