"""What trained runs see in the same images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from composer_attn.heatmaps import heat_maps
from composer_attn.runs.data.preprocessing import Preprocessing
from composer_attn.runs.inference.load_run import LoadedRun, as_probabilities


@dataclass(frozen=True)
class View:
    """One network's view of one image.

    Attributes:
        run: short name of the network.
        pixels: the image as it was given to the network, ``(H, W, 3)``, uint8.
        heat: the heat map of the predicted class, ``(H, W)`` in [0, 1].
        prediction: name of that class.
        index: its index.
        probability: its probability.
        layer: name of the layer whose feature map was used.
    """

    run: str
    pixels: np.ndarray
    heat: np.ndarray
    prediction: str
    index: int
    probability: float
    layer: str


def views_of(run: LoadedRun, name: str, images: Tensor, layer: str | None = None) -> list[View]:
    """Return a network's view of each image.

    Args:
        run: a loaded run.
        name: short name of the run.
        images: preprocessed images, ``(N, 3, H, W)``.
        layer: as in :func:`composer_attn.heat_maps`.

    Raises:
        ArgumentError: there is no such layer, or its output is no feature map.
        MissingExtraError: captum is not installed.
        ModelError: the network has no feature map.
    """
    found = heat_maps(run.network, images, layer=layer)
    probabilities = as_probabilities(found.logits, run.activation)
    best = probabilities.gather(1, found.predictions[:, None])[:, 0]
    return [
        View(name, pixels, heat, run.classes[index], index, probability, found.layer)
        for pixels, heat, index, probability in zip(
            pixels_of(images, run.preprocessing),
            found.maps.cpu().numpy(),
            found.predictions.tolist(),
            best.tolist(),
            strict=True,
        )
    ]


def pixels_of(images: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """Return preprocessed images ``(N, 3, H, W)`` as bytes ``(N, H, W, 3)`` to look at."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    values = images.cpu() * std[:, None, None] + mean[:, None, None]
    return values.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
