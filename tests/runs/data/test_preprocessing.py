"""One image prepared by itself is what the run's evaluation makes of it, to the bit."""

import json

import pytest
import torch
from PIL import Image

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import DATASETS, build_loader, preprocessing
from composer_attn.runs.data.preprocessing import Preprocessing, preprocessing_of
from tests.pictures import write_image_folder, write_mds


def evaluated(section):
    """Return the images of a dataset as evaluation sees them, and the preprocessing of it."""
    arguments = {name: value for name, value in section.items() if name != "name"}
    source = DATASETS[section["name"]](**arguments)
    data = build_loader(source, 4, train=False, seed=0)
    images = torch.cat([data.microbatch_transforms(batch)[0] for batch in data.dataloader])
    return source, images, preprocessing_of(section)


OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}


def test_every_dataset_has_one():
    assert set(preprocessing._BY_DATASET) == set(DATASETS)
    flowers = preprocessing_of({"name": "flowers102", "root": "x", "split": "val", "size": 200})
    assert (flowers.resize, flowers.size, flowers.mean) == (256, 200, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    "more", [{}, {"size": 24, "resize": 24}, {"size": 20, "resize": 64}, {"size": 24, **OWN}]
)
def test_a_folder_of_images(more, tmp_path):
    root = write_image_folder(tmp_path)
    section = {"name": "image_folder", "root": f"{root}/val", "augmentation": "center_crop", **more}
    source, images, prepare = evaluated(section)
    assert len(images) == 12
    for (path, _), expected in zip(source.dataset.samples, images, strict=True):
        assert torch.equal(prepare(Image.open(path)), expected)
    assert images.shape[1:] == (3, prepare.size, prepare.size)
    again = Preprocessing.from_json(json.loads(json.dumps(prepare.as_json())))
    assert again == prepare


def test_a_stream_of_images(tmp_path):
    root = write_mds(tmp_path)
    section = {
        "name": "mds", "local": f"{root}/val", "num_classes": 3, "size": 24, "resize": 32,
        "augmentation": "center_crop",
    }  # fmt: skip
    _, images, prepare = evaluated(section)
    from tests.pictures import picture

    expected = [prepare(picture(label, number)) for number in range(4) for label in range(3)]
    assert torch.equal(images, torch.stack(expected))


def test_nothing_is_drawn_at_random_and_a_crop_larger_than_the_side_resizes_more():
    drawn = {"name": "image_folder", "root": "x", "augmentation": "resnet", "size": 300}
    prepare = preprocessing_of(drawn)
    assert (prepare.resize, prepare.crop, prepare.size) == (300, 300, 300)
    image = Image.effect_noise((400, 350), 80).convert("RGB")
    assert torch.equal(prepare(image), prepare(image))
    assert prepare(image).shape == (3, 300, 300)


def test_cifar_images_are_taken_as_they_are_and_others_resized():
    prepare = preprocessing_of({"name": "cifar10", "root": "x", "split": "test"})
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    pixels = torch.tensor(list(image.getdata()), dtype=torch.float32).T.view(3, 32, 32)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
    torch.testing.assert_close(prepare(image), (pixels / 255 - mean) / std)
    assert prepare(image.resize((50, 40))).shape == (3, 32, 32)


def test_digits_lose_their_colours_and_are_enlarged():
    prepare = preprocessing_of({"name": "digits", "split": "test"})
    white = prepare(Image.new("RGB", (8, 8), "white"))
    assert white.shape == (3, 32, 32)
    assert white.unique().tolist() == [1.0]
    coloured = prepare(Image.new("RGB", (30, 20), (255, 0, 0)))
    assert torch.equal(coloured[0], coloured[2])
    assert coloured.mean() == pytest.approx(76 / 127.5 - 1)  # what Pillow takes for its gray


def test_non_images_and_unknown_preprocessing_are_refused():
    with pytest.raises(ArgumentError, match="synthetic data"):
        preprocessing_of({"name": "synthetic"})(Image.new("RGB", (8, 8)))
    with pytest.raises(ArgumentError, match="it is not known how to prepare an image for 'x'"):
        preprocessing_of({"name": "x"})
    for values in ({}, [], {"resize": "many"}, None):
        with pytest.raises(ValueError, match="not a preprocessing of images"):
            Preprocessing.from_json(values)
