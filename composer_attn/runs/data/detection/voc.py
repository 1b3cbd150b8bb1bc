"""Pascal VOC: an XML file of objects for each image, and lists of the images of each split."""

from collections.abc import Iterator
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
from composer_attn.runs.data.detection.objects import source_of
from composer_attn.runs.data.source import Source

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def voc(
    root: str,
    split: str,
    augmentation: str = "none",
    classes: list | None = None,
    keep_empty: bool = True,
    on_bad_image: str = "error",
) -> Source:
    """Read the boxes of Pascal VOC, or of any dataset in its format.

    Objects marked as difficult are not trained on, and passed over in evaluation. The challenge's
    own average precision differs from COCO's, which is what is computed: there the first pixel has
    the coordinate 1, and detections of difficult objects are matched differently.

    Args:
        root: the folder with ``JPEGImages``, ``Annotations`` and ``ImageSets/Main``, such as
            ``VOCdevkit/VOC2012``.
        split: the name of a list in ``ImageSets/Main``: ``train``, ``val``, ``trainval``, ...
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
    for name in _names(Path(root), split):
        try:
            found.append(_image(Path(root), name, labels))
        except BadAnnotationError as error:
            bad.add(error.reason, f"{name}: {error}")
    bad.check()
    return source_of(found, tuple(labels), "boxes", augmentation, bad, keep_empty)


def _labels(classes: object) -> dict[str, int]:
    names = list(classes) if isinstance(classes, (list, tuple)) else []
    if not names or not all(isinstance(n, str) for n in names) or len({*names}) < len(names):
        raise ArgumentError(f"classes must be a list of different names; got {classes!r}")
    return {name: label for label, name in enumerate(names, start=1)}


def _names(root: Path, split: str) -> list[str]:
    lists = root / "ImageSets" / "Main"
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
