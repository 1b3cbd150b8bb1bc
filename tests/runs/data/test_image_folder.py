"""Folders of images: what is read, how it is augmented and batched, what is refused."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.image_folder import image_folder
from composer_attn.runs.data.images import AUGMENTATIONS, Normalize, build_transform
from tests.pictures import picture, write_image_folder, write_png


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path)


def batches(source, seed=0, epoch=0, **options):
    loader = build_loader(source, 4, train=True, seed=seed, **options).dataloader
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_batches_are_bytes_in_channels_last_memory(folder):
    source = image_folder(f"{folder}/train", "resnet", size=16)
    images, labels = batches(source)[0]
    assert images.shape == (4, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert source.num_classes == 3
    assert source.classes == ("class0", "class1", "class2")
    # The brightest colour is the label's.
    assert images.float().mean((2, 3)).argmax(1).tolist() == labels.tolist()


def test_normalized_images_have_torchvisions_numbers(folder):
    source = image_folder(f"{folder}/val", "center_crop", size=24, resize=32)
    loader = build_loader(source, 4, train=False, seed=0)
    images, _ = loader.microbatch_transforms(next(iter(loader.dataloader)))
    reference = v2.Compose(
        [
            v2.Resize(32),
            v2.CenterCrop(24),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    path, _ = source.dataset.samples[0]
    torch.testing.assert_close(images[0], reference(Image.open(path)), atol=1e-5, rtol=1e-5)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_normalizing_leaves_the_batch_as_it_is():
    batch = torch.full((1, 3, 2, 2), 100.0)
    Normalize((0.5,) * 3, (0.25,) * 3)(batch)
    assert (batch == 100).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_makes_images_of_the_size(name):
    torch.manual_seed(0)
    image = build_transform(name, 24, 32)(picture(0, 0))
    assert image.shape == (3, 24, 24)
    assert image.dtype == torch.uint8
    again = build_transform(name, 24, 32)(picture(0, 0))
    assert torch.equal(image, again) == (name == "center_crop")


@pytest.mark.parametrize("workers", [1, 2])
def test_augmentation_depends_on_seed_epoch_and_image_alone(folder, workers):
    def pixels(seed=0, epoch=0, **options):
        torch.manual_seed(torch.initial_seed() + 1)  # whatever else was drawn before
        source = image_folder(f"{folder}/train", "resnet", size=16)
        return torch.cat([images for images, _ in batches(source, seed, epoch, **options)])

    alone = pixels()
    assert torch.equal(alone, pixels(num_workers=workers))
    assert not torch.equal(alone, pixels(seed=1))
    assert not torch.equal(alone, pixels(epoch=1))


def test_augmentation_leaves_the_global_state_alone(folder):
    source = image_folder(f"{folder}/train", "trivial_augment", size=16)
    dataset = build_loader(source, 4, train=True, seed=0).dataloader.dataset
    before = torch.get_rng_state()
    dataset[(0, 0)]
    assert torch.equal(before, torch.get_rng_state())


def test_a_bad_image_is_an_error_that_names_the_file(folder):
    bad = folder / "train" / "class1" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    source = image_folder(f"{folder}/train", "resnet", size=16)
    with pytest.raises(
        ArgumentError,
        match=r"class1/3\.jpg cannot be read as an image: .*on_bad_image: skip leaves",
    ):
        batches(source)


def test_images_of_sixteen_bits_keep_their_brightness(folder):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for path in (folder / "val").rglob("*.jpg"):
        write_png(path.with_suffix(".png"), ramp)
        path.unlink()
    source = image_folder(f"{folder}/val", "center_crop", size=8, resize=8)
    image, _ = source.dataset[0]
    assert torch.equal(image, torch.from_numpy(ramp // 256).to(torch.uint8).expand(3, 8, 8))


@pytest.mark.parametrize("skip", [True, False])
def test_numbers_of_no_known_range_are_bad_images(folder, skip):
    path = folder / "val" / "class0" / "0.tif"
    Image.fromarray(np.ones((8, 8), np.float32)).save(path)
    action = "skip" if skip else "error"
    source = image_folder(f"{folder}/val", "center_crop", 8, 8, on_bad_image=action)
    index = [sample for sample, _ in source.dataset.samples].index(str(path))
    if skip:
        assert source.dataset[index] is None
        assert source.skipped() == 1
    else:
        with pytest.raises(
            ArgumentError, match=r"0\.tif cannot be read as an image: its largest possible value"
        ):
            source.dataset[index]


def test_an_image_that_would_swell_is_a_bad_image(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    source = image_folder(f"{folder}/val", "center_crop", 8, 8, on_bad_image="skip")
    assert source.dataset[0] is None


def test_files_of_other_endings_are_counted_and_named(folder):
    for number in range(3):
        picture(0, number).save(folder / "val" / "class0" / f"{number}.GIF")
    (folder / "val" / "class1" / "deep").mkdir()
    (folder / "val" / "class1" / "deep" / "notes.txt").touch()
    (folder / "val" / "class1" / ".DS_Store").touch()
    picture(0, 0).save(folder / "val" / "class2" / "0.WEBP")  # which is read
    said = (
        r"^ignored 5 files in .*val that end in \.gif \(3\), "
        r"\.DS_Store \(1\), \.txt \(1\); images must end in \.jpg, "
    )
    with pytest.warns(UserWarning, match=said):
        source = image_folder(f"{folder}/val", "center_crop", 8, 8)
    assert source.passed_over == {".gif": 3, ".txt": 1, ".DS_Store": 1}
    assert len(source.dataset) == 3 * 4 + 1


def test_a_class_of_nothing_but_other_endings_says_so(folder):
    for path in (folder / "val" / "class0").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(FileNotFoundError, match=r"classes class0\. ignored 4 .* \.gif \(4\); im"):
        image_folder(f"{folder}/val", "center_crop", 8, 8)


def test_a_folder_of_images_alone_says_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_folder(f"{folder}/val", "center_crop", 8, 8).passed_over == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_and_counted_under_skip(folder, workers):
    for number in (1, 5):
        (folder / "train" / "class1" / f"{number}.jpg").write_bytes(b"no image")
    source = image_folder(f"{folder}/train", "resnet", size=16, on_bad_image="skip")
    labels = torch.cat([labels for _, labels in batches(source, num_workers=workers)])
    assert torch.bincount(labels).tolist() == [8, 6, 8]
    assert source.skipped() == 2


def test_a_batch_without_any_image_is_an_error(folder):
    for path in (folder / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    source = image_folder(f"{folder}/train", "resnet", size=16, on_bad_image="skip")
    with pytest.raises(ArgumentError, match="none of the 4 images of a batch can be read"):
        batches(source)


def test_a_folder_without_classes_or_images_or_with_one_class(tmp_path):
    with pytest.raises(FileNotFoundError):
        image_folder(f"{tmp_path}/absent", "resnet")
    with pytest.raises(FileNotFoundError, match="any class folder"):
        image_folder(str(tmp_path), "resnet")
    (tmp_path / "cats").mkdir()
    with pytest.raises(FileNotFoundError, match="no valid file"):
        image_folder(str(tmp_path), "resnet")
    picture(0, 0).save(tmp_path / "cats" / "1.png")
    with pytest.raises(ArgumentError, match="one class only: 'cats'"):
        image_folder(str(tmp_path), "resnet")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"augmentation": "resnett"}, "augmentation must be one of aug_mix, auto_augment"),
        ({"augmentation": "center_crop", "size": 64, "resize": 48}, "at most resize=48"),
        ({"augmentation": "resnet", "on_bad_image": "ignore"}, "must be error or skip"),
    ],
)
def test_arguments_that_are_not_valid(folder, arguments, says):
    with pytest.raises(ArgumentError, match=says):
        image_folder(f"{folder}/train", **arguments)
