"""Pascal VOC's segmentation, from the files that torchvision reads or downloads."""

from pathlib import Path

import torchvision
from composer.utils import dist

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.images import Normalize
from composer_attn.runs.data.segmentation.mask_folder import source_of
from composer_attn.runs.data.segmentation.transforms import RANDOM, build_transform
from composer_attn.runs.data.source import Source

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
_SPLITS = ("train", "trainval", "val")
_YEARS = tuple(range(2007, 2013))


def voc_segmentation(
    root: str,
    split: str,
    augmentation: str | None = None,
    size: int = 480,
    resize: int = 520,
    year: int = 2012,
    on_bad_image: str = "error",
    mean: list | None = None,
    std: list | None = None,
    download: bool = False,
) -> Source:
    """Read Pascal VOC's images with masks: 20 classes and the background; 255 is no class.

    Everingham et al. (2010). The Pascal Visual Object Classes (VOC) Challenge. In 2012 there are
    1,464 images for training and 1,449 for evaluation.

    Args:
        root: the folder that contains ``VOCdevkit``.
        split: ``train``, ``val``, or both: ``trainval``.
        augmentation: as for ``mask_folder``; by default ``resize`` for ``val``, and else
            ``random_resize_crop``.
        size: as for ``mask_folder``.
        resize: as for ``mask_folder``.
        year: 2007 to 2012.
        on_bad_image: as for ``mask_folder``.
        mean: as for ``mask_folder``.
        std: as for ``mask_folder``.
        download: whether to download the files if they are missing.

    Raises:
        ArgumentError: an argument is invalid, or a mask cannot be used.
        FileNotFoundError: the files are missing.
    """
    if split not in _SPLITS:
        raise ArgumentError(f"split must be one of {', '.join(_SPLITS)}; got {split!r}")
    if year not in _YEARS:
        raise ArgumentError(f"year must be from {_YEARS[0]} to {_YEARS[-1]}; got {year!r}")
    augmentation = augmentation or ("resize" if split == "val" else RANDOM)
    transform, normalize = build_transform(augmentation, size, resize), Normalize.by(mean, std)
    try:
        with dist.run_local_rank_zero_first():
            files = torchvision.datasets.VOCSegmentation(root, str(year), split, download)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"{root} does not hold VOC {year}'s {split} split: {error}"
        ) from error
    pairs = [(Path(i), Path(m)) for i, m in zip(files.images, files.masks, strict=True)]
    return source_of(pairs, CLASSES, augmentation, transform, normalize, size, on_bad_image)
