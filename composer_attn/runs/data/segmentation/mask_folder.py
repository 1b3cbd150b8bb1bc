"""A folder of images and one of masks with the same names."""

from collections import Counter
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from composer_attn.errors import ArgumentError, first_few
from composer_attn.runs.data.images import Normalize
from composer_attn.runs.data.segmentation.pairs import Pair, Pairs
from composer_attn.runs.data.segmentation.transforms import (
    IGNORED,
    RANDOM,
    build_transform,
    collate,
)
from composer_attn.runs.data.source import Source


def mask_folder(
    root: str,
    classes: list,
    augmentation: str,
    size: int = 480,
    resize: int = 520,
    on_bad_image: str = "error",
    mean: list | None = None,
    std: list | None = None,
) -> Source:
    """Read images from ``root/images`` and their masks from ``root/masks``, paired by their names.

    Masks are images with palette, or gray with 8 bits, as large as their image: each pixel is the
    index of its class, or 255 for none. All masks are checked before training.

    Args:
        root: the folder of one split.
        classes: names of the classes, in the order of their indices; ``background``, if there is
            one, included.
        augmentation: one of
            :data:`~composer_attn.runs.data.segmentation.transforms.AUGMENTATIONS`.
        size: height and width of the crops of ``random_resize_crop``, in pixels.
        resize: usual length of the shorter side, in pixels.
        on_bad_image: ``error``, or ``skip`` to leave out images that cannot be read, have no mask,
            one of another size or one with an unknown class, and count them.
        mean: means of red, green and blue for normalization, with values from 0 to 1; ImageNet's
            by default.
        std: standard deviations for normalization; ImageNet's by default.

    Returns:
        Pairs of an image ``(3, H, W)`` and a mask ``(H, W)``, uint8.

    Raises:
        ArgumentError: an argument is invalid, or a pair cannot be used.
        FileNotFoundError: there is no such folder, or it has no images.
    """
    names = _names(classes)
    transform, normalize = build_transform(augmentation, size, resize), Normalize.by(mean, std)
    passed_over: Counter[str] = Counter()
    images, masks = (_files(Path(root, name), passed_over) for name in ("images", "masks"))
    if not images:
        raise FileNotFoundError(f"{Path(root, 'images')} holds no images")
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired and on_bad_image != "skip":
        raise ArgumentError(
            f"images and masks in {root} are paired by their names without the ending; only one of "
            f"the two has {first_few(unpaired)}. on_bad_image: skip leaves such files out, and "
            "counts them"
        )
    pairs = [(images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys())]
    if not pairs:
        raise ArgumentError(f"no image in {root} has a mask of its name")
    return source_of(
        pairs, names, augmentation, transform, normalize, size, on_bad_image,
        len(unpaired), dict(passed_over),
    )  # fmt: skip


def source_of(
    pairs: list[Pair],
    names: tuple[str, ...],
    augmentation: str,
    transform: Any,
    normalize: Normalize,
    size: int,
    on_bad_image: str,
    unpaired: int = 0,
    passed_over: dict[str, int] | None = None,
) -> Source:
    """Return the data of pairs of files, which are checked.

    Raises:
        ArgumentError: a pair cannot be used.
    """
    dataset = Pairs(pairs, transform, len(names), on_bad_image)
    return Source(
        dataset,
        num_classes=len(names),
        image_shape=(3, size, size),
        classes=names,
        collate=collate,
        device_transform=normalize,
        random=augmentation == RANDOM,
        passed_over=passed_over or {},
        skipped=lambda: dataset.skipped() + unpaired,
    )


def _names(classes: Any) -> tuple[str, ...]:
    names = tuple(str(name) for name in classes)
    if not 2 <= len(names) <= IGNORED or len(set(names)) < len(names):
        raise ArgumentError(
            f"classes must be 2 to {IGNORED} different names, in the order of the indices in the "
            f"masks; got {classes!r}"
        )
    return names


def _files(folder: Path, passed_over: Counter[str]) -> dict[str, Path]:
    """Return the images in a folder by their names without the ending, counting other files."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMG_EXTENSIONS:
            passed_over[path.suffix.lower() or path.name] += 1
        elif path.stem in found:
            raise ArgumentError(f"{path} and {found[path.stem].name} have the same name")
        else:
            found[path.stem] = path
    return found
