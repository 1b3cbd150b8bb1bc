"""Folders of images and masks: what is read, how it is augmented, what is refused."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.segmentation import pairs
from composer_attn.runs.data.segmentation.mask_folder import mask_folder
from composer_attn.runs.data.segmentation.pairs import read_mask
from tests.runs.data.segmentation.masks import write_mask_folder, write_pair
from tests.two_ranks import on_two_ranks

CLASSES = ["background", "cat", "dog"]


@pytest.fixture
def folder(tmp_path):
    write_mask_folder(tmp_path)
    return tmp_path


def batches(source, epoch=0, seed=0, train=True, **options):
    loader = build_loader(source, 2, train=train, seed=seed, **options).dataloader
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(here, there) -> bool:
    return all(
        torch.equal(a, b) for ours, theirs in zip(here, there, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )  # fmt: skip


def test_masks_are_the_indices_in_their_files(tmp_path):
    masks = write_mask_folder(tmp_path, 2)
    source = mask_folder(str(tmp_path), CLASSES, "resize", resize=30)
    assert source.classes == tuple(CLASSES)
    assert source.num_classes == 3
    for (image, mask), expected in zip(source.dataset, masks, strict=True):
        assert image.shape == (3, 30, 40)
        assert np.array_equal(mask.numpy(), expected)
        assert type(image) is type(mask) is torch.Tensor


def checked_by(rank: int, root: str) -> tuple[list[str], list[str]]:
    """Return the masks that a rank reads before training, and those that it may train on."""
    read = []
    whole = pairs.read_mask
    pairs.read_mask = lambda path: (read.append(path.name), whole(path))[1]
    source = mask_folder(root, CLASSES, "resize", on_bad_image="skip")
    return sorted(read), [mask.name for _, mask in source.dataset.pairs]


@pytest.mark.slow
def test_ranks_share_the_reading_of_masks_and_agree(tmp_path):
    write_mask_folder(tmp_path / "data", 5)
    (tmp_path / "data/masks/03.png").write_bytes(b"no image")
    (one, kept), (other, also) = on_two_ranks(
        partial(checked_by, root=str(tmp_path / "data")), tmp_path
    )
    assert one == ["00.png", "02.png", "04.png"]
    assert other == ["01.png", "03.png"]
    assert kept == also == ["00.png", "01.png", "02.png", "04.png"]


def test_gray_palette_and_binary_masks_are_read(tmp_path):
    values = np.array([[0, 1], [1, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "gray.png")
    Image.fromarray(values == 1).save(tmp_path / "binary.png")
    assert np.array_equal(read_mask(tmp_path / "gray.png"), values)
    assert read_mask(tmp_path / "binary.png").tolist() == [[0, 1], [1, 0]]


def test_crops_are_of_one_size_and_padded_without_a_class(folder):
    source = mask_folder(str(folder), CLASSES, "random_resize_crop", size=64, resize=30)
    images, masks = batches(source)[0]
    assert images.shape == (2, 3, 64, 64)
    assert masks.shape == (2, 64, 64)
    assert images.dtype == masks.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (masks == 255).any(2).any(1).all()
    assert set(masks.unique().tolist()) <= {0, 1, 2, 255}


def test_images_and_masks_are_augmented_alike(tmp_path):
    # The colour of each pixel is that of its class, so that it shows whether they still agree.
    write_mask_folder(tmp_path, 4, size=(64, 48))
    source = mask_folder(str(tmp_path), CLASSES, "random_resize_crop", size=32, resize=48)
    for images, masks in batches(source):
        for image, mask in zip(images, masks, strict=True):
            brightest = image.argmax(0)  # blue, red or green
            for index, channel in ((0, 2), (1, 0), (2, 1)):
                inside = brightest[mask == index]
                assert len(inside) == 0 or (inside == channel).float().mean() > 0.9


def test_larger_images_pad_the_others_of_a_batch_in_evaluation(tmp_path):
    write_pair(tmp_path / "images/a.png", tmp_path / "masks/a.png", size=(30, 20))
    write_pair(tmp_path / "images/b.png", tmp_path / "masks/b.png", size=(20, 30))
    source = mask_folder(str(tmp_path), CLASSES, "resize", resize=20)
    loader = build_loader(source, 2, train=False, seed=0)
    images, masks = loader.microbatch_transforms(next(iter(loader.dataloader)))
    assert images.shape == (2, 3, 30, 30)
    assert (masks[0, 20:] == 255).all()
    assert (masks[1, :, 20:] == 255).all()
    assert images[0, :, 20:].abs().max() < 0.02  # about the mean colour
    assert images.dtype == torch.float32


def test_augmentation_depends_on_seed_epoch_and_image_alone(folder):
    source = mask_folder(str(folder), CLASSES, "random_resize_crop", size=24, resize=30)
    here = batches(source)
    torch.rand(5)
    assert same(here, batches(source))
    assert same(here, batches(source, num_workers=1))
    assert not same(here, batches(source, epoch=1))
    assert not same(here, batches(source, seed=1))


def wrong_size(root):
    Image.fromarray(np.zeros((9, 40), np.uint8)).save(root / "masks/01.png")


def unknown_class(root):
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(root / "masks/01.png")


def colours(root):
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / "masks/01.png")


def broken_mask(root):
    (root / "masks/01.png").write_bytes(b"no image")


def broken_image(root):
    (root / "images/01.png").write_bytes(b"no image")


def no_mask(root):
    (root / "masks/01.png").unlink()


BAD = {
    wrong_size: r"masks/01.png has 40x9 pixels, and its image 40x30: they must be of one size",
    unknown_class: r"masks/01.png holds the unknown class 7: the 3 classes are 0 to 2, and 255 is",
    colours: r"masks/01.png cannot be read as a mask: .* \(Pillow's mode RGB\)",
    broken_mask: r"masks/01.png cannot be read as a mask: ",
    broken_image: r"images/01.png cannot be read as an image: ",
    no_mask: r"paired by their names .* only one of the two has 01",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_pair_is_refused_before_training_in_one_line(folder, spoil):
    spoil(folder)
    with pytest.raises(ArgumentError, match=BAD[spoil]) as raised:
        mask_folder(str(folder), CLASSES, "resize")
    assert "on_bad_image: skip leaves such" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_pair_is_counted_and_skipped(folder, spoil, caplog):
    spoil(folder)
    with caplog.at_level(logging.WARNING):
        source = mask_folder(str(folder), CLASSES, "resize", resize=20, on_bad_image="skip")
    assert len(source.dataset) == 3
    assert source.skipped() == 1
    assert sum(len(masks) for _, masks in batches(source, train=False)) == 3
    assert ("01.png" in caplog.text) == (spoil is not no_mask)


def test_an_image_that_breaks_later_is_skipped_in_its_batch(folder):
    source = mask_folder(str(folder), CLASSES, "resize", resize=20, on_bad_image="skip")
    path = folder / "images/02.png"
    path.write_bytes(path.read_bytes()[:60])
    found = batches(source, train=False)
    assert [len(masks) for _, masks in found] == [2, 1]
    assert source.skipped() == 1


def test_if_every_pair_is_bad_there_is_nothing_to_skip_to(folder):
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.full((30, 40), 9, np.uint8)).save(path)
    with pytest.raises(ArgumentError, match=r"unknown class 9: .* \(4 of 4 pairs cannot be used\)"):
        mask_folder(str(folder), CLASSES, "resize", on_bad_image="skip")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"classes": ["one"]}, "classes must be 2 to 255 different names"),
        ({"classes": ["a", "a"]}, "classes must be 2 to 255 different names"),
        ({"augmentation": "resnet"}, "augmentation must be one of random_resize_crop, resize"),
        ({"size": 0}, "size must be a whole number >= 1"),
        ({"on_bad_image": "maybe"}, "on_bad_image must be error or skip"),
        ({"mean": [1]}, "mean must be three numbers"),
    ],
)
def test_wrong_arguments_are_refused(folder, arguments, says):
    with pytest.raises(ArgumentError, match=says):
        mask_folder(
            **{"root": str(folder), "classes": CLASSES, "augmentation": "resize"} | arguments
        )


def test_missing_folders_and_other_files(folder):
    (folder / "images/notes.txt").write_text("")
    source = mask_folder(str(folder), CLASSES, "resize")
    assert source.passed_over == {".txt": 1}
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none/images"):
        mask_folder(str(folder / "none"), CLASSES, "resize")
    write_pair(folder / "images/00.jpg", folder / "other/00.png")
    with pytest.raises(ArgumentError, match=r"images/00.png and 00.jpg have the same name"):
        mask_folder(str(folder), CLASSES, "resize")
