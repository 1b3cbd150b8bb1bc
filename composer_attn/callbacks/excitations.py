"""The file in which a run stores its excitations at the last evaluation."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from composer_attn.callbacks.tally import FIGURES, Tally

FILE = "excitations.npz"


@dataclass(frozen=True)
class Layer:
    """Excitations of one attention by class; the last row is for all samples.

    Attributes:
        name: name of the attended module.
        mean: mean excitation of each channel, ``(classes + 1, C)``.
        std: standard deviation over samples of each channel, ``(classes + 1, C)``.
        figures: the monitor's figures over all samples.
    """

    name: str
    mean: np.ndarray
    std: np.ndarray
    figures: dict[str, float]


@dataclass(frozen=True)
class Excitations:
    """Excitations of the attentions of a network, in model order.

    Attributes:
        batch: number of batches that the network had been trained on.
        classes: the labels that were distinguished.
        samples: number of samples of each class, then of all, ``(classes + 1,)``.
        layers: one for each attended module.
    """

    batch: int
    classes: tuple[int, ...]
    samples: np.ndarray
    layers: tuple[Layer, ...]


def write(folder: Path, batch: int, classes: Sequence[int], tallies: Mapping[str, Tally]) -> None:
    """Write the reduced tallies of an evaluation, replacing those of an earlier one."""
    arrays = {"batch": np.array(batch), "classes": np.array(classes, dtype=np.int64)}
    arrays["layers"] = np.array(list(tallies))
    arrays["samples"] = next(iter(tallies.values())).samples().numpy()
    for i, tally in enumerate(tallies.values()):
        arrays[f"mean_{i}"] = tally.mean().numpy().astype(np.float32)
        arrays[f"std_{i}"] = tally.deviation().numpy().astype(np.float32)
        arrays[f"figures_{i}"] = np.array([tally.figures()[name] for name in FIGURES])
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{FILE}.part"
    with scratch.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(scratch, folder / FILE)


def read(folder: Path) -> Excitations | None:
    """Read the file that :func:`write` wrote to a folder; ``None`` if there is no valid one."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            layers = tuple(
                Layer(
                    str(name),
                    file[f"mean_{i}"],
                    file[f"std_{i}"],
                    dict(zip(FIGURES, file[f"figures_{i}"].tolist(), strict=True)),
                )
                for i, name in enumerate(file["layers"])
            )
            classes = tuple(file["classes"].tolist())
            return Excitations(int(file["batch"]), classes, file["samples"], layers)
    except (OSError, KeyError, ValueError, BadZipFile):
        return None
