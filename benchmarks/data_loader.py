"""Is the data pipeline of `image_folder` as fast as that of torchvision's reference script?

python -m benchmarks.data_loader --num-workers 2
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torchvision
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchvision.transforms import v2

from benchmarks import common
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.image_folder import image_folder
from composer_attn.runs.data.images import IMAGENET_MEAN, IMAGENET_STD

_CORES = os.cpu_count() or 1
_CLASSES = 4
_WIDTH, _HEIGHT = 500, 375  # the most common image size in ImageNet
_SIZE, _RESIZE = 224, 256
_SEED = 0
_RESULTS = common.RESULTS / "data_loader.csv"
_VERSIONS = ("torch", "torchvision", "pillow", "mosaicml", "composer-attn")

Batch = tuple[Tensor, Tensor]


class Augmentation(str, Enum):
    """What both pipelines do to an image: for training or for evaluation."""

    RESNET = "resnet"
    CENTER_CROP = "center_crop"


@dataclass(frozen=True)
class Pipeline:
    """A loader, and a function that turns its batches into normalized float32 on the device."""

    name: str
    loader: DataLoader
    finish: Callable[[Batch], Batch]


@dataclass
class Measured:
    """Images per second in each pass, and the bytes of a full batch as the loader returns it."""

    speeds: list[float] = field(default_factory=list)
    batch_bytes: int = 0


def ours(
    root: Path, augmentation: Augmentation, batch_size: int, num_workers: int, device: str
) -> Pipeline:
    """Build the pipeline of a run: workers return uint8, which is normalized on the device."""
    spec = build_loader(
        image_folder(str(root), augmentation.value, size=_SIZE, resize=_RESIZE),
        batch_size,
        train=augmentation is Augmentation.RESNET,
        seed=_SEED,
        num_workers=num_workers,
        drop_last=False,
    )

    def finish(batch: Batch) -> Batch:
        return spec.microbatch_transforms(_to(batch, device))

    return Pipeline("composer_attn", spec.dataloader, finish)


def reference(
    root: Path,
    augmentation: Augmentation,
    batch_size: int,
    num_workers: int,
    device: str,
    use_v2: bool = False,
) -> Pipeline:
    """Build the pipeline of torchvision's references/classification, with its default backend, PIL.

    Its workers persist here, so that starting them does not count in passes over few images;
    ``use_v2`` is its option of that name, for torchvision's transforms v2.
    """
    dataset = torchvision.datasets.ImageFolder(root, _preset(augmentation, use_v2))
    sampler = RandomSampler if augmentation is Augmentation.RESNET else SequentialSampler
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler(dataset),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )
    name = "torchvision, v2" if use_v2 else "torchvision"
    return Pipeline(name, loader, lambda batch: _to(batch, device))


def _preset(augmentation: Augmentation, use_v2: bool) -> Callable[[Image.Image], Tensor]:
    """Build the reference's ClassificationPresetTrain or ClassificationPresetEval."""
    t: Any = v2 if use_v2 else torchvision.transforms
    if augmentation is Augmentation.RESNET:
        crop = [t.RandomResizedCrop(_SIZE, antialias=True), t.RandomHorizontalFlip(0.5)]
    else:
        crop = [t.Resize(_RESIZE, antialias=True), t.CenterCrop(_SIZE)]
    to_float = t.ToDtype(torch.float, scale=True) if use_v2 else t.ConvertImageDtype(torch.float)
    normalize = t.Normalize(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    end = [t.ToPureTensor()] if use_v2 else []
    return t.Compose([*crop, t.PILToTensor(), to_float, normalize, *end])


def _to(batch: Batch, device: str) -> Batch:
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def measure(pipelines: list[Pipeline], passes: int) -> list[Measured]:
    """Interleave passes over all images, after a warm-up pass for each pipeline."""
    measured = [Measured() for _ in pipelines]
    for number in range(passes + 1):
        for pipeline, found in zip(pipelines, measured, strict=True):
            speed, found.batch_bytes = _one_pass(pipeline, number)
            if number:
                found.speeds.append(speed)
    return measured


def _one_pass(pipeline: Pipeline, epoch: int) -> tuple[float, int]:
    """Return images per second, and the bytes of the largest batch as the loader returns it."""
    if hasattr(pipeline.loader.sampler, "set_epoch"):
        pipeline.loader.sampler.set_epoch(epoch)
    images, batch_bytes = 0, 0
    start = time.perf_counter()
    for batch in pipeline.loader:
        batch_bytes = max(batch_bytes, sum(tensor.nbytes for tensor in batch))
        images += len(pipeline.finish(batch)[0])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start), batch_bytes


def compare(pipelines: list[Pipeline], measured: list[Measured]) -> list[dict[str, Any]]:
    """Compare the first pipeline, ours, with each of the others.

    Ratios compare passes of the same round; above 1, ours is faster.
    """
    first, *peers = measured
    found = []
    for pipeline, peer in zip(pipelines[1:], peers, strict=True):
        found.append(
            {
                "peer": pipeline.name,
                "ours_images_per_second": round(statistics.median(first.speeds), 1),
                "peer_images_per_second": round(statistics.median(peer.speeds), 1),
                **common.ratios(first.speeds, peer.speeds),
                "ours_batch_bytes": first.batch_bytes,
                "peer_batch_bytes": peer.batch_bytes,
            }
        )
    return found


def write_images(root: Path, count: int) -> Path:
    """Write JPEG files with the size and detail of photographs, one folder per class."""
    random = np.random.default_rng(_SEED)
    landscape = _landscape(random)
    for number in range(count):
        folder = root / f"class{number % _CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        x, y = random.integers(2 * _WIDTH), random.integers(2 * _HEIGHT)
        view = landscape[y : y + _HEIGHT, x : x + _WIDTH]
        grain = random.normal(0, 8, (_HEIGHT, _WIDTH, 1))
        picture = Image.fromarray((view + grain).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number}.jpg", quality=90)
    return root


def _landscape(random: np.random.Generator) -> np.ndarray:
    """Draw an image to crop pictures from: octaves of noise with decreasing amplitude."""
    width, height = 3 * _WIDTH, 3 * _HEIGHT
    pixels = np.zeros((height, width, 3), np.float32)
    for cells in (2**octave for octave in range(2, 11)):
        shape = (4, max(2, cells * height // width), cells)
        grey, *colours = random.standard_normal(shape).astype(np.float32)
        for channel, colour in enumerate(colours):
            octave = Image.fromarray(grey + 0.4 * colour).resize((width, height), Image.BICUBIC)
            pixels[..., channel] += np.asarray(octave) * cells**-0.7
    return 128 + pixels * (55 / pixels.std())


def _amounts(loader: DataLoader) -> dict[str, int]:
    """Return the number and size of the images, and how they are loaded."""
    sizes = [Path(path).stat().st_size for path, _ in loader.dataset.samples]
    return {
        "images": len(sizes),
        "image_bytes": sum(sizes) // len(sizes),
        "batch_size": loader.batch_size,
        "num_workers": loader.num_workers,
    }


def _show(settings: dict[str, Any], found: list[dict[str, Any]]) -> None:
    title = (
        "{augmentation}, {images} images of {image_bytes:,} bytes, batch {batch_size}, "
        "{num_workers} workers, {cores} cores, {device}"
    )
    table = Table("loader", "images/s", "bytes a batch", "ours is faster by (quartiles)")
    table.title = title.format(**settings)
    own = "composer_attn|{ours_images_per_second:,.0f}|{ours_batch_bytes:,}"
    peer = "{peer}|{peer_images_per_second:,.0f}|{peer_batch_bytes:,}|" + common.RATIO
    for line in (own.format(**found[0]), *(peer.format(**row) for row in found)):
        table.add_row(*line.split("|"))
    Console().print(table)


def main(
    num_workers: Annotated[int, typer.Option(min=0, help="Worker processes.")] = _CORES,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 32,
    images: Annotated[int, typer.Option(min=_CLASSES, help="Images to generate.")] = 512,
    passes: Annotated[int, typer.Option(min=2, help="Timed passes of each loader.")] = 15,
    augmentation: Annotated[
        Augmentation, typer.Option(help="For training or evaluation.")
    ] = Augmentation.RESNET,
    root: Annotated[
        Path | None, typer.Option(help="Your own images, root/<class>/*; default: generated.")
    ] = None,
    results: Annotated[Path, typer.Option(help="The CSV file to append to.")] = _RESULTS,
) -> None:
    """Measure how fast images are loaded from files to normalized float32 on the device.

    Compares our loader with that of torchvision's references/classification/train.py.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = common.machine(device, _VERSIONS) | {
        "augmentation": augmentation.value,
        "passes": passes,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = root or write_images(Path(scratch), images)
        options = (folder, augmentation, batch_size, num_workers, device)
        pipelines = [ours(*options), reference(*options), reference(*options, use_v2=True)]
        settings |= _amounts(pipelines[1].loader)
        found = compare(pipelines, measure(pipelines, passes))
    _show(settings, found)
    common.append(results, [settings | row for row in found])


if __name__ == "__main__":
    typer.run(main)
