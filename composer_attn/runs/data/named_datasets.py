"""Image classification datasets by name, from files that torchvision reads or downloads."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from composer.utils import dist
from torch.utils.data import Dataset

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.images import Normalize, build_transform, collate, to_rgb
from composer_attn.runs.data.source import Source

# In datasets without splits, every fifth image of a class is held out.
_HELD_OUT = 5


@dataclass(frozen=True)
class _Dataset:
    """A dataset of torchvision's.

    Attributes:
        kind: name of its class.
        splits: names of its splits; empty if it has none, and every fifth image is held out.
        num_classes: number of classes.
    """

    kind: str
    splits: tuple[str, ...]
    num_classes: int

    def build(self, root: str, split: str, download: bool) -> Dataset:
        """Build the dataset, downloading the files if ``download``."""
        cls = getattr(torchvision.datasets, self.kind)
        arguments: dict[str, Any] = {"split": split} if self.splits else {}
        if "download" in inspect.signature(cls).parameters:
            arguments["download"] = download
        return cls(root, **arguments)


_TABLE = {
    "caltech101": _Dataset("Caltech101", (), 101),
    "dtd": _Dataset("DTD", ("train", "val", "test"), 47),
    "eurosat": _Dataset("EuroSAT", (), 10),
    "fgvc_aircraft": _Dataset("FGVCAircraft", ("train", "val", "trainval", "test"), 100),
    "flowers102": _Dataset("Flowers102", ("train", "val", "test"), 102),
    "food101": _Dataset("Food101", ("train", "test"), 101),
    "imagenet": _Dataset("ImageNet", ("train", "val"), 1000),
    "oxford_iiit_pet": _Dataset("OxfordIIITPet", ("trainval", "test"), 37),
    "stanford_cars": _Dataset("StanfordCars", ("train", "test"), 196),
    "stl10": _Dataset("STL10", ("train", "test"), 10),
    "svhn": _Dataset("SVHN", ("train", "test", "extra"), 10),
}


class _Transformed(Dataset):
    """A transformed subset of a dataset."""

    def __init__(self, images: Any, indices: Sequence[int], transform: Callable):
        self.images, self.indices, self.transform = images, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        image, label = self.images[self.indices[index]]
        return self.transform(to_rgb(image)), int(label)


def _named(
    dataset: _Dataset,
    root: str,
    split: str,
    augmentation: str | None = None,
    size: int = 224,
    resize: int = 256,
    mean: list | None = None,
    std: list | None = None,
    download: bool = False,
) -> Source:
    splits = dataset.splits or ("train", "test")
    if split not in splits:
        raise ArgumentError(f"split must be one of {', '.join(splits)}; got {split!r}")
    trains = split not in ("val", "test")
    augmentation = augmentation or ("resnet" if trains else "center_crop")
    transform = build_transform(augmentation, size, resize)
    normalize = Normalize.by(mean, std)
    try:
        with dist.run_local_rank_zero_first():
            images: Any = dataset.build(root, split, download)
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{root} does not hold the complete {split} split of {dataset.kind}: {error}"
        ) from error
    indices = range(len(images)) if dataset.splits else _part(labels_of(images), trains)
    return Source(
        _Transformed(images, indices, transform),
        num_classes=dataset.num_classes,
        image_shape=(3, size, size),
        classes=_classes(images, dataset.num_classes),
        collate=collate,
        device_transform=normalize,
        random=augmentation != "center_crop",
    )


def labels_of(images: Any) -> list[int]:
    """Return the labels of a dataset without reading its images."""
    found = getattr(images, "targets", None)
    return list(images.y if found is None else found)  # Caltech101 has y


def _part(labels: Sequence[int], trains: bool) -> list[int]:
    """List the indices of a split: every fifth image of each class is held out."""
    seen: dict[int, int] = {}
    found = []
    for index, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        if (seen[label] % _HELD_OUT == 0) != trains:
            found.append(index)
    return found


def _classes(images: Any, count: int) -> tuple[str, ...]:
    names = getattr(images, "classes", None) or getattr(images, "categories", None) or ()
    # ImageNet has several names for a class.
    found = tuple(name if isinstance(name, str) else name[0] for name in names)
    return found if len(set(found)) == count else ()


def _build_of(name: str, dataset: _Dataset) -> Callable[..., Source]:
    build: Any = partial(_named, dataset)
    build.__name__ = name
    build.__doc__ = f"Read {dataset.kind}, as torchvision does; see :data:`NAMED_DATASETS`."
    return build


NAMED_DATASETS: dict[str, Callable[..., Source]] = {
    name: _build_of(name, dataset) for name, dataset in _TABLE.items()
}
"""
Datasets by name, with these arguments: ``root``, the folder that torchvision's dataset takes;
``split``, one of the dataset's (Caltech101 and EuroSAT have none: every fifth image of each class
is ``test``); ``augmentation``, by default ``resnet`` for training and ``center_crop`` for ``val``
and ``test``; ``size`` and ``resize`` as for ``image_folder``; ``mean`` and ``std``, by default
ImageNet's; ``download``, whether to download missing files (not available for ImageNet).
"""
