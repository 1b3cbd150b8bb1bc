"""Small datasets of rectangles, in the formats of COCO and of Pascal VOC, written by the tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

# Ids with gaps, out of order.
CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}, {"id": 90, "name": "blue"}]
COLOURS = {7: (220, 30, 30), 3: (30, 220, 30), 90: (30, 30, 220)}
POINTS = ["middle", "left_top", "right_top", "left_bottom"]


def polygon_of(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def points_of(box):
    x, y, w, h = box
    return [x + w / 2, y + h / 2, 2, x, y, 2, x + w, y, 1, 0, 0, 0]


def annotation(number, image, category, box):
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0,
        "area": box[2] * box[3], "segmentation": polygon_of(box), "keypoints": points_of(box),
        "num_keypoints": 3,
    }  # fmt: skip


def content(count=4, seed=0):
    """An annotation file's content: images of several sizes, one to three rectangles in each."""
    random = np.random.default_rng(seed)
    images, objects = [], []
    for index in range(count):
        width, height = (64, 48) if index % 2 else (48, 56)
        image = {"id": 100 + index, "file_name": f"{index}.png", "width": width, "height": height}
        images.append(image)
        for _ in range(random.integers(1, 4)):
            category = int(random.choice(list(COLOURS)))
            w, h = (int(v) for v in random.integers(12, 24, 2))
            x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
            objects.append(annotation(len(objects) + 1, image["id"], category, (x, y, w, h)))
    categories = [{**c, "keypoints": POINTS} for c in CATEGORIES]
    return {"images": images, "annotations": objects, "categories": categories}


def write_coco(folder: Path, found=None) -> dict:
    """Write images and ``annotations.json``; return the arguments of the dataset."""
    found = content() if found is None else found
    folder.mkdir(parents=True, exist_ok=True)
    for image in found["images"]:
        pixels = np.full((image["height"], image["width"], 3), 128, np.uint8)
        for each in found["annotations"]:
            box = each.get("bbox") or []
            if each["image_id"] == image["id"] and len(box) == 4 and min(box) >= 0:
                x, y, w, h = map(int, box)
                pixels[y : y + h, x : x + w] = COLOURS.get(each["category_id"], (0, 0, 0))
        Image.fromarray(pixels).save(folder / image["file_name"])
    path = folder / "annotations.json"
    path.write_text(json.dumps(found))
    return {"images": str(folder), "annotations": str(path)}


VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def write_voc(root: Path, images: dict[str, list[tuple]], split="train", size=(60, 40)) -> None:
    """Write a folder in VOC's layout; each object is a name, four corners and ``difficult``."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    width, height = size
    for image, objects in images.items():
        Image.new("RGB", size, "gray").save(root / "JPEGImages" / f"{image}.jpg")
        inside = "".join(
            VOC_OBJECT.format(*corners, name=name, difficult=difficult)
            for name, corners, difficult in objects
        )
        (root / "Annotations" / f"{image}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>{inside}"
            "</annotation>"
        )
    (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(images))


def write_voc_masks(root: Path, images: dict[str, list[tuple]], split="train", size=(60, 40)):
    """Write a folder in VOC's layout with masks that fill the boxes; later objects are on top."""
    write_voc(root, images, split, size)
    for folder in ("SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image, objects in images.items():
        numbers = np.zeros(size[::-1], np.uint8)
        for number, (_, (left, top, right, bottom), _) in enumerate(objects, start=1):
            numbers[top - 1 : bottom, left - 1 : right] = number
        write_numbers(root, image, numbers)
    (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(images))


def write_numbers(root: Path, image: str, numbers: np.ndarray) -> None:
    """Write the number of the object that each pixel belongs to, with a palette."""
    mask = Image.fromarray(numbers).convert("P")
    mask.putdata(numbers.ravel().tolist())
    mask.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    mask.save(root / "SegmentationObject" / f"{image}.png")
