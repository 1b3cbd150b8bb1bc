"""Pascal VOC: an XML file of objects for each image, images of their masks, lists of splits."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from composer_attn.checks import unknown
from composer_attn.errors import ArgumentError, first_line
from composer_attn.runs.data.detection.annotated import (
    NO_BOX,
    Annotated,
    BadAnnotationError,
    BadImages,
    Corners,
    clipped,
)
from composer_attn.runs.data.detection.objects import Wanted, source_of
from composer_attn.runs.data.segmentation.pairs import read_mask
from composer_attn.runs.data.segmentation.transforms import IGNORED
from composer_attn.runs.data.shared_checks import map_over_ranks
from composer_attn.runs.data.source import Source

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def _voc(
    wanted: Wanted,
    root: str,
    split: str,
    augmentation: str = "none",
    classes: list | None = None,
    keep_empty: bool = True,
    on_bad_image: str = "error",
) -> Source:
    """Read the objects of Pascal VOC, or of any dataset in its format.

    Masks are from ``SegmentationObject``: the pixels of the first object of an annotation are 1,
    those of the second 2, and so on. All are checked before training.

    Objects marked as difficult are not trained on, and passed over in evaluation. The challenge's
    own average precision differs from COCO's, which is what is computed: there the first pixel has
    the coordinate 1, and detections of difficult objects are matched differently.

    Args:
        wanted: what to read besides the boxes; set by the task.
        root: the folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``, such as
            ``VOCdevkit/VOC2012``; for masks, also with ``SegmentationObject``.
        split: the name of a list in ``ImageSets/Main``, or for masks in ``ImageSets/Segmentation``:
            ``train``, ``val``, ``trainval``, ...
        augmentation: one of :data:`~composer_attn.runs.data.detection.augmentation.AUGMENTATIONS`.
        classes: the names of the classes, in the order of their labels; the 20 of VOC by default.
        keep_empty: whether to keep images without objects.
        on_bad_image: ``error``, or ``skip`` to leave out images that are missing or cannot be read,
            and those whose annotations are no use, and to count them.

    Raises:
        ArgumentError: an argument is invalid, or there are bad images.
        FileNotFoundError: there is no such folder, or no such split.
    """
    labels = _labels(CLASSES if classes is None else classes)
    bad = BadImages(Path(root, "Annotations"), on_bad_image)
    found = []
    for name in _names(Path(root), split, wanted):
        try:
            found.append(_image(Path(root), name, labels))
        except BadAnnotationError as error:
            bad.add(error.reason, f"{name}: {error}")
    if wanted == "masks":
        found = _with_masks(found, Path(root, "SegmentationObject"), bad)
    bad.check()
    return source_of(found, tuple(labels), wanted, augmentation, bad, keep_empty)


def _labels(classes: object) -> dict[str, int]:
    names = list(classes) if isinstance(classes, (list, tuple)) else []
    if not names or not all(isinstance(n, str) for n in names) or len({*names}) < len(names):
        raise ArgumentError(f"classes must be a list of different names; got {classes!r}")
    return {name: label for label, name in enumerate(names, start=1)}


def _names(root: Path, split: str, wanted: Wanted) -> list[str]:
    lists = root / "ImageSets" / ("Segmentation" if wanted == "masks" else "Main")
    path = lists / f"{split}.txt"
    if not path.is_file():
        # Beside the splits there are lists of each class, such as cat_train.txt.
        there = sorted(p.stem for p in lists.glob("*.txt") if "_" not in p.stem)
        valid = f"; there are {', '.join(there)}" if there else ""
        raise FileNotFoundError(f"there is no list {str(path)!r} of a split{valid}")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _image(root: Path, name: str, labels: dict[str, int]) -> Annotated:
    path = root / "JPEGImages" / f"{name}.jpg"
    if not path.is_file():
        raise BadAnnotationError("missing images", f"there is no {path.name} in {path.parent}")
    tree = _parse(root / "Annotations" / f"{name}.xml")
    size = (_whole(tree, "size/height"), _whole(tree, "size/width"))
    objects = list(_objects(tree, size, labels))
    boxes = np.asarray([box for box, _, _ in objects], np.float32).reshape(-1, 4)
    return Annotated(
        path=path,
        size=size,
        boxes=boxes,
        labels=np.asarray([label for _, label, _ in objects], np.int64),
        crowds=np.asarray([difficult for _, _, difficult in objects], bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )


def _with_masks(images: Sequence[Annotated], folder: Path, bad: BadImages) -> list[Annotated]:
    """Return the images whose objects have masks in a folder; note the others."""
    masked = [replace(each, mask=folder / f"{each.path.stem}.png") for each in images]
    objections = map_over_ranks(_objection, masked)
    for image, objection in zip(masked, objections, strict=True):
        if objection is not None:
            reason, detail = objection
            bad.add(reason, f"{image.path.stem}: {detail}")
    return [each for each, objection in zip(masked, objections, strict=True) if not objection]


def _objection(image: Annotated) -> tuple[str, str] | None:
    """Return why the mask of an image is no use, as a reason and its details."""
    path = image.mask
    if path is None or not path.is_file():
        return "images without a mask", f"there is no {path}"
    try:
        numbers = read_mask(path)
    except Exception as error:  # of any type: the file may contain anything
        return "damaged masks", f"{path.name} cannot be read as a mask: {first_line(error)}"
    if numbers.shape != image.size:
        (height, width), (right_height, right_width) = numbers.shape, image.size
        sizes = f"{width} x {height} pixels, and its image {right_width} x {right_height}"
        return "masks of another size", f"{path.name} has {sizes}"
    found = {int(number) for number in np.unique(numbers)} - {0, IGNORED}
    # Objects that are not trained on may lack a mask.
    required = {number for number, crowd in enumerate(image.crowds, start=1) if not crowd}
    if missing := sorted(required - found):
        return "objects without a mask", f"{path.name} has no pixel of {missing[0]}"
    if more := sorted(number for number in found if number > len(image.labels)):
        return "masks of no object", f"{path.name} has {more[0]}, of {len(image.labels)} objects"
    return None


def _parse(path: Path) -> Element:
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise BadAnnotationError("images without annotations", f"no {path.name}") from None
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        detail = f"{path.name} is not XML: {first_line(error)}"
        raise BadAnnotationError("damaged annotations", detail) from None


def _objects(
    tree: Element, size: tuple[int, int], labels: dict[str, int]
) -> Iterator[tuple[Corners, int, bool]]:
    for each in tree.iter("object"):
        name = (each.findtext("name") or "").strip()
        if name not in labels:
            raise BadAnnotationError("unknown classes", unknown("class", name, labels))
        # The first pixel is 1, and the last one belongs to the box.
        left, top, right, bottom = _corners(each, name)
        inside = clipped((left - 1, top - 1, right, bottom), size)
        yield inside, labels[name], (each.findtext("difficult") or "0").strip() == "1"


def _corners(each: Element, name: str) -> Corners:
    texts = [each.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError:
        raise BadAnnotationError(NO_BOX, f"the box of {name} is {texts!r}") from None
    return left, top, right, bottom


def _whole(tree: Element, key: str) -> int:
    text = (tree.findtext(key) or "").strip()
    if not text.isdigit() or int(text) < 1:
        raise BadAnnotationError("images without a size", f"its {key} is {text!r}")
    return int(text)


voc_boxes = partial(_voc, "boxes")
voc_masks = partial(_voc, "masks")
