"""Folders of images: what is read, how it is augmented and batched, what is refused."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.image_folder import image_folder
from composer_attn.runs.data.images import AUGMENTATIONS, Normalize, build_transform
from tests.pictures import picture, write_image_folder


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
    with pytest.raises(ArgumentError, match=r"class1/3\.jpg cannot be read as an image"):
        batches(source)


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
