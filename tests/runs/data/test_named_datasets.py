"""Datasets by name, from files as torchvision's own are."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from composer_attn.errors import ArgumentError
from composer_attn.runs.components.registry import dataset_kind
from composer_attn.runs.data import DATASETS
from composer_attn.runs.tasks.classification import CLASSIFICATION

GREYS = 8  # images of a class: the n-th is uniformly 20 n bright


def image(path, brightness: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 12, 3), brightness, np.uint8)).save(path)


def images(folder, pattern: str) -> None:
    for number in range(GREYS):
        image(folder / pattern.format(number), 20 * number)


def write_eurosat(root):
    for name in ("Forest", "River"):
        images(root / "eurosat" / "2750" / name, "{}.jpg")


def write_caltech101(root):
    (root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir(parents=True)
    for name in ("ant", "watch"):
        for number in range(GREYS):  # counted from 1
            folder = root / "caltech101" / "101_ObjectCategories" / name
            image(folder / f"image_{number + 1:04d}.jpg", 20 * number)
        folder = root / "caltech101" / "Annotations" / name
        folder.mkdir(parents=True)


def write_food101(root):
    folder = root / "food-101"
    split = {}
    for name in ("apple_pie", "waffles"):
        images(folder / "images" / name, "{}.jpg")
        split[name] = [f"{name}/{n}" for n in range(GREYS)]
    (folder / "meta").mkdir()
    for part, which in (("train", slice(0, 6)), ("test", slice(6, None))):
        text = json.dumps({name: found[which] for name, found in split.items()})
        (folder / "meta" / f"{part}.json").write_text(text)


def write_pets(root):
    folder = root / "oxford-iiit-pet"
    for name in ("Abyssinian", "boxer"):
        images(folder / "images", f"{name}_{{}}.jpg")
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    for part, which in (("trainval", range(6)), ("test", range(6, GREYS))):
        lines = [f"{name}_{n} {label} 1 1\n" for label, name in ((1, "Abyssinian"), (2, "boxer"))
                 for n in which]  # fmt: skip
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines))


def write_dtd(root):
    folder = root / "dtd" / "dtd"
    for name in ("banded", "zigzagged"):
        images(folder / "images" / name, f"{name}_{{}}.jpg")
    (folder / "labels").mkdir()
    for part, which in (("train", range(3)), ("val", range(3, 6)), ("test", range(6, GREYS))):
        lines = [f"{name}/{name}_{n}.jpg\n" for name in ("banded", "zigzagged") for n in which]
        (folder / "labels" / f"{part}1.txt").write_text("".join(lines))


# What writes it; how many images its splits have.
WRITTEN = {
    "caltech101": (write_caltech101, {"train": 14, "test": 2}),
    "dtd": (write_dtd, {"train": 6, "val": 6, "test": 4}),
    "eurosat": (write_eurosat, {"train": 14, "test": 2}),
    "food101": (write_food101, {"train": 12, "test": 4}),
    "oxford_iiit_pet": (write_pets, {"trainval": 12, "test": 4}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_split_holds_its_images_and_labels(name, tmp_path):
    write, counts = WRITTEN[name]
    write(tmp_path)
    total = 0
    for split, count in counts.items():
        source = DATASETS[name](str(tmp_path), split, size=8, resize=8)
        samples = [source.dataset[i] for i in range(len(source.dataset))]
        assert len(samples) == count
        assert {pixels.shape for pixels, _ in samples} == {(3, 8, 8)}
        assert {pixels.dtype for pixels, _ in samples} == {torch.uint8}
        assert sorted({label for _, label in samples}) == [0, 1]
        assert source.random == (split not in ("val", "test"))
        total += count
    assert total == 2 * GREYS


def test_of_a_dataset_without_splits_every_fifth_image_of_a_class_is_held_out(tmp_path):
    write_eurosat(tmp_path)
    held_out = DATASETS["eurosat"](str(tmp_path), "test", size=8, resize=8).dataset
    assert [label for _, label in held_out] == [0, 1]
    # The fifth is 80 bright; JPEG preserves uniform images up to rounding.
    assert all((pixels.float() - 80).abs().max() <= 1 for pixels, _ in held_out)


def test_the_published_numbers_of_classes():
    classes = {
        "caltech101": 101, "dtd": 47, "eurosat": 10, "fgvc_aircraft": 100, "flowers102": 102,
        "food101": 101, "imagenet": 1000, "oxford_iiit_pet": 37, "stanford_cars": 196,
        "stl10": 10, "svhn": 10,
    }  # fmt: skip
    assert {n: b.args[0].num_classes for n, b in DATASETS.items() if n in classes} == classes


def test_images_are_normalized_by_the_numbers_that_are_given(tmp_path):
    write_eurosat(tmp_path)
    source = DATASETS["eurosat"](
        str(tmp_path), "test", size=8, resize=8, mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 1.0]
    )
    found = source.device_transform(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert torch.allclose(found[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"split": "val"}, "split must be one of train, test; got 'val'"),
        ({"mean": "red"}, "mean must be three numbers from 0 to 1"),
        ({"std": [0.5, 0.5, 0]}, "std must be three numbers from 0 to 1"),
        ({"augmentation": "none"}, "augmentation must be one of"),
    ],
)
def test_bad_arguments(given, says, tmp_path):
    write_eurosat(tmp_path)
    with pytest.raises(ArgumentError, match=says):
        DATASETS["eurosat"](**{"root": str(tmp_path), "split": "train", **given})


@pytest.mark.parametrize("name", [*WRITTEN, "fgvc_aircraft", "flowers102", "imagenet", "svhn"])
def test_files_that_are_not_there(name, tmp_path):
    split = DATASETS[name].args[0].splits or ("train",)
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path} does not hold the complete {split[0]} split"
    ):
        DATASETS[name](str(tmp_path), split[0])


def test_yaml_is_checked_against_their_arguments():
    section = {"name": "flowers102", "root": "/data", "split": "train", "mean": [0.5, 0.5, 0.5]}
    kind = dataset_kind(CLASSIFICATION)
    assert kind.check("train_dataset", section) == []
    (mistake,) = kind.check("train_dataset", section | {"dowload": True})
    assert "did you mean 'download'?" in str(mistake)
