"""Heat maps of image files: a picture for each, with all runs side by side."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from composer_attn.errors import ArgumentError
from composer_attn.runs.heatmaps.drawing import draw
from composer_attn.runs.heatmaps.views import View, views_of
from composer_attn.runs.inference import LoadedRun, load_run
from composer_attn.runs.inference.predict import prepare
from composer_attn.runs.training.checkpoint_saver import saving

_BATCH = 16
_DPI = 200


@dataclass(frozen=True)
class Picture:
    """A picture that was written, and what is in it.

    Attributes:
        file: the picture.
        image: the image file.
        label: the name of its class: its folder's, if that is a class of the first run.
        views: what each run sees in it.
    """

    file: Path
    image: Path
    label: str | None
    views: tuple[View, ...]

    def __str__(self) -> str:
        said = [f"{v.run}: {v.prediction} {v.probability:.2%}" for v in self.views]
        return f"{self.file}: {', '.join(said)}"

    def as_json(self) -> dict[str, Any]:
        """Return what is in the picture, for a JSON document."""
        keys = ("run", "prediction", "index", "probability", "layer")
        runs = [{key: getattr(view, key) for key in keys} for view in self.views]
        return {
            "file": str(self.file), "image": str(self.image), "label": self.label, "runs": runs,
        }  # fmt: skip


def write_heat_maps(
    runs: Sequence[Path],
    images: Path,
    out: Path,
    layer: str | None = None,
    checkpoint: str = "best",
) -> list[Picture]:
    """Write a picture for each image: what trained runs look at in it.

    Args:
        runs: folders of runs, or checkpoints.
        images: a folder of images, in subfolders or not, or one image.
        out: folder to write to; subfolders are kept.
        layer: as in :func:`composer_attn.heat_maps`.
        checkpoint: as in :func:`composer_attn.load_run`.

    Returns:
        The pictures, in the order of the files' names.

    Raises:
        ArgumentError: there is no run, image or layer, or an image cannot be read. Nothing was
            written.
        CheckpointError, ConfigError: a run cannot be loaded.
        MissingExtraError: captum is not installed.
        SaveError: the folder cannot be written.
    """
    loaded = [load_run(run, checkpoint=checkpoint) for run in runs]
    for run in loaded:
        run.check_classifies("heatmaps")
    names = _names(loaded, runs)
    files = _images_in(images, out)
    root = images if images.is_dir() else images.parent
    targets = _targets(files, root, out)
    for preprocessing in dict.fromkeys(run.preprocessing for run in loaded):
        for file in files:
            prepare(file, preprocessing)
    written = []
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        rows = list(_views(loaded, names, batch, layer))
        for file, views in zip(batch, rows, strict=True):
            label = file.parent.name if file.parent.name in loaded[0].classes else None
            written.append(Picture(targets[file], file, label, views))
            _save(written[-1])
    return written


def as_json(pictures: Iterable[Picture]) -> str:
    """Return pictures as one JSON document, a list."""
    return json.dumps([picture.as_json() for picture in pictures], indent=2)


def _names(loaded: Sequence[LoadedRun], paths: Sequence[Path]) -> list[str]:
    """Return short names of runs: their own, or the paths where these do not differ."""
    names = [run.config.run_name for run in loaded]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _images_in(images: Path, out: Path) -> list[Path]:
    """List the images in a folder, without the pictures that an earlier call wrote within it."""
    if images.is_file():
        return [images]
    if not images.is_dir():
        raise ArgumentError(f"--images: there is no folder or file {images}")
    found = [path for path in images.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS]
    if out.resolve() != images.resolve():
        found = [path for path in found if out.resolve() not in path.resolve().parents]
    if not found:
        raise ArgumentError(
            f"--images: {images} holds no image, no file that ends in {', '.join(IMG_EXTENSIONS)}"
        )
    return sorted(found)


def _targets(files: Sequence[Path], root: Path, out: Path) -> dict[Path, Path]:
    """Return the picture of each file, which keeps the file's ending where names would clash."""
    plain = {file: out / file.relative_to(root).with_suffix(".png") for file in files}
    taken = Counter(plain.values())
    targets = {
        file: target if taken[target] == 1 else target.with_name(f"{file.name}.png")
        for file, target in plain.items()
    }
    own = {file.resolve() for file in files}
    lost = [target for target in targets.values() if target.resolve() in own]
    if lost:
        raise ArgumentError(f"--out: {lost[0]} is one of the images: name another folder")
    return targets


def _views(
    loaded: Sequence[LoadedRun], names: Sequence[str], files: Sequence[Path], layer: str | None
) -> Iterator[tuple[View, ...]]:
    """Yield the runs' views of each file."""
    by_run = []
    for run, name in zip(loaded, names, strict=True):
        batch = torch.stack([prepare(file, run.preprocessing) for file in files])
        by_run.append(views_of(run, name, batch, layer))
    yield from zip(*by_run, strict=True)


def _save(picture: Picture) -> None:
    figure = draw(picture.views, picture.label)
    with saving(picture.file):
        picture.file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture.file, facecolor="white", dpi=_DPI)
