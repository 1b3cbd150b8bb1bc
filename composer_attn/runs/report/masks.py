"""Masks of semantic segmentation, drawn over their image."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from composer_attn.runs.tasks.task import Example

IGNORED = 255  # pixels without a class
_ALPHA = 0.7


def draw_masks(axes: Axes, example: Example, what: str, names: Sequence[str]) -> None:
    """Draw a mask over its image, in a labelled colour for each class other than a background.

    Args:
        axes: axes that show the image.
        example: ``truth`` and ``predicted``, ``(H, W)``, with the index of a class for each pixel.
        what: which of the two.
        names: names of the classes.
    """
    mask = example[what]
    shown = np.zeros((*mask.shape, 4))
    for index in np.unique(mask).tolist():
        name = names[index] if index < len(names) else f"class {index}"
        if index == IGNORED:
            shown[mask == index] = (1, 1, 1, _ALPHA)
        elif name != "background":
            shown[mask == index] = (*_colour(index), _ALPHA)
            # Nothing but an entry of the legend.
            axes.plot([], [], "s", color=_colour(index), alpha=_ALPHA, label=name)
    axes.imshow(shown, interpolation="nearest")


def _colour(index: int) -> tuple[float, ...]:
    """Return the colour of a class: ten strong ones, then the same ten in light."""
    return colormaps["tab20"](2 * index % 20 + index // 10 % 2)[:3]


def pixels_right(example: Example) -> str:
    """Write the share of pixels that are classified correctly, of those with a class."""
    known = example["truth"] != IGNORED
    if not known.any():
        return "no pixel has a class"
    right = (example["predicted"] == example["truth"])[known].mean()
    return f"{right:.1%} of pixels right"
