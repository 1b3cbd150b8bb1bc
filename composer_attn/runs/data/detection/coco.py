"""Annotations in the format of COCO: one JSON file, and a folder of images."""

import json
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError, first_line
from composer_attn.runs.data.detection.annotated import (
    NO_BOX,
    Annotated,
    BadAnnotationError,
    BadImages,
    Corners,
    clipped,
)
from composer_attn.runs.data.detection.categories import Categories
from composer_attn.runs.data.detection.keypoints import Keypoints
from composer_attn.runs.data.detection.objects import Wanted, source_of
from composer_attn.runs.data.detection.outlines import is_outline
from composer_attn.runs.data.source import Source

_PARTS = ("images", "annotations", "categories")


def _coco(
    wanted: Wanted,
    images: str,
    annotations: str,
    augmentation: str = "none",
    keep_empty: bool = True,
    category_ids: bool = False,
    on_bad_image: str = "error",
) -> Source:
    """Read the objects of COCO, or of any dataset in its format.

    Every annotation is checked before training.

    Args:
        wanted: what to read besides the boxes; set by the task.
        images: the folder of the images.
        annotations: the JSON file of one split, such as ``instances_train2017.json``.
        augmentation: one of :data:`~composer_attn.runs.data.detection.augmentation.AUGMENTATIONS`.
        keep_empty: whether to keep images without objects; what torchvision's recipes train on has
            none.
        category_ids: whether labels are the ids in the file, gaps included, as in the networks that
            torchvision has trained on COCO; by default they are counted from 1 in the order of the
            ids.
        on_bad_image: ``error``, or ``skip`` to leave out images that are missing or cannot be read,
            and those with defects such as unknown categories, or boxes without area or outside,
            and to count them.

    Raises:
        ArgumentError: the file is not in this format, an argument is invalid, or there are bad
            images.
        FileNotFoundError: there is no such file or folder.
        MissingExtraError: masks are wanted, and faster-coco-eval is not installed.
    """
    bad = BadImages(annotations, on_bad_image)
    content = _read(Path(annotations))
    categories = _categories(content, annotations, category_ids)
    points = Keypoints.of(content["categories"], annotations) if wanted == "keypoints" else None
    by_image = _by_image(content, bad)
    reader = _Reader(categories, wanted, points, _Folder(Path(images)))
    found = []
    for image in content["images"]:
        try:
            found.append(reader.image(image, by_image.pop(_id(image), [])))
        except BadAnnotationError as error:
            bad.add(error.reason, str(error))
    bad.check()
    return source_of(found, categories.classes, wanted, augmentation, bad, keep_empty, points)


class _Folder:
    """A folder of images, each of whose subfolders is listed once."""

    def __init__(self, root: Path):
        self.root = root
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {str(root)!r} of images")
        self._names: dict[Path, set[str]] = {}

    def find(self, name: str) -> Path:
        path = self.root / name
        if path.parent not in self._names:
            exists = path.parent.is_dir()
            self._names[path.parent] = {p.name for p in path.parent.iterdir()} if exists else set()
        if path.name not in self._names[path.parent]:
            raise BadAnnotationError("missing images", f"{name} is not in {self.root}")
        return path


class _Reader:
    """Turns what a file says of an image into its objects."""

    def __init__(
        self, categories: Categories, wanted: Wanted, points: Keypoints | None, folder: _Folder
    ):
        self.labels = {i: categories.label_of(i) for i in categories.ids}
        self.wanted, self.points, self.folder = wanted, points, folder

    def image(self, image: Any, objects: list[Any]) -> Annotated:
        """Return an image with its objects.

        Raises:
            BadAnnotationError: it is missing, or one of its annotations is no use.
        """
        name, width, height = (_get(image, key) for key in ("file_name", "width", "height"))
        if not isinstance(name, str) or not all(_is_count(v) for v in (width, height)):
            raise BadAnnotationError(
                "images without file_name, width and height", f"image {_id(image)!r}"
            )
        path = self.folder.find(name)
        rows = []
        for each in objects:
            try:
                rows.append(self._object(each, (height, width)))
            except BadAnnotationError as error:
                detail = f"{name}, annotation {_id(each)}: {error}"
                raise BadAnnotationError(error.reason, detail) from None
        boxes, labels, crowds, areas = zip(*rows, strict=True) if rows else ((), (), (), ())
        return Annotated(
            path=path,
            size=(height, width),
            boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
            labels=np.asarray(labels, np.int64),
            crowds=np.asarray(crowds, bool),
            areas=np.asarray(areas, np.float32),
            outlines=tuple(map(self._outline, objects)),
            keypoints=None if self.points is None else self.points.stacked(objects),
        )

    def _outline(self, each: Any) -> Any:
        """Return the polygons or run lengths of an object; ``None`` if none are wanted."""
        return _get(each, "segmentation") if self.wanted == "masks" else None

    def _object(self, each: Any, size: tuple[int, int]) -> tuple[Corners, int, bool, float]:
        label = self.labels.get(_get(each, "category_id"))
        if label is None:
            detail = f"category_id is {_get(each, 'category_id')!r}"
            raise BadAnnotationError("unknown categories", detail)
        box = clipped(_corners(_get(each, "bbox")), size)
        crowd = bool(_get(each, "iscrowd"))
        if self.wanted == "masks" and not is_outline(_get(each, "segmentation")):
            raise BadAnnotationError("objects without a mask", "its segmentation has no polygon")
        if self.wanted == "masks":
            _check_run_lengths(_get(each, "segmentation"), size)
        if self.points is not None and not crowd:
            self.points.check(_get(each, "keypoints"))
        area = _get(each, "area")
        known = is_real(area) and area > 0
        return box, label, crowd, float(area if known else (box[2] - box[0]) * (box[3] - box[1]))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} of annotations")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path} is not JSON: {first_line(error)}") from None
    lists = content if isinstance(content, dict) else {}
    missing = [key for key in _PARTS if not isinstance(lists.get(key), list)]
    if missing:
        raise ArgumentError(
            f"{path} is not in COCO's format: it has no list of {' and '.join(missing)}"
        )
    return lists


def _categories(content: Mapping[str, Any], path: str, as_labels: bool) -> Categories:
    pairs = [(_id(each), _get(each, "name")) for each in content["categories"]]
    if not all(type(i) is int and isinstance(name, str) for i, name in pairs):
        raise ArgumentError(f"{path}: every category must have a whole number id and a name")
    try:
        return Categories.of(pairs, as_labels)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from None


def _by_image(content: Mapping[str, Any], bad: BadImages) -> dict[Any, list[Any]]:
    """Return the annotations of each image, by its id; note ids that occur twice or nowhere."""
    ids = [_id(image) for image in content["images"]]
    known = {i for i in ids if isinstance(i, (int, str))}
    if len(known) < len(ids):
        raise ArgumentError(f"{bad.where}: every image must have an id of its own")
    found: dict[Any, list[Any]] = defaultdict(list)
    for each in content["annotations"]:
        image = _get(each, "image_id")
        if isinstance(image, (int, str)) and image in known:
            found[image].append(each)
        else:
            bad.add("annotations of no image", f"annotation {_id(each)}: image_id is {image!r}")
    return found


def _corners(box: Any) -> Corners:
    """Return the corners of a box given by its upper left corner, width and height.

    Raises:
        BadAnnotationError: these are not four numbers.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_real, box)):
        raise BadAnnotationError(NO_BOX, f"its bbox is {box!r:.60}")
    left, top, width, height = map(float, box)
    return left, top, left + width, top + height


def _check_run_lengths(outline: Any, size: tuple[int, int]) -> None:
    """Check that run lengths, if that is what an outline is, are of the size of their image.

    Raises:
        BadAnnotationError: they are not.
    """
    if isinstance(outline, Mapping) and outline["size"] != list(size):
        height, width = size
        detail = f"run lengths for (height, width) {outline['size']}, not {[height, width]}"
        raise BadAnnotationError("masks of another size", detail)


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, Mapping) else None


def _id(entry: Any) -> Any:
    return _get(entry, "id")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


coco_boxes = partial(_coco, "boxes")
coco_masks = partial(_coco, "masks")
coco_keypoints = partial(_coco, "keypoints")
