"""Draw an image with the heat maps of several networks beside it."""

import re
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from composer_attn.runs.heatmaps.views import View

INK = "#1b1f24"  # as in the report, which replaces it by the colour of its text
_WIDTH = 5.2  # inches, as of the other plots of a report
_IN_A_ROW = 4
_FONT = 10
_LINE = 0.175  # inches, the height of a line
_BLANK = "\0"
_LETTERS = 16  # that fit above or below a panel
_SIDE = 224  # pixels to which smaller images are enlarged
_MAP = "inferno"
_STRONGEST = 0.8  # share of the colours where the heat is 1


def draw(views: Sequence[View], label: str | None, colours: Sequence[str] = ()) -> Figure:
    """Draw an image, and beside it every network's heat map on top of it.

    Below each are the prediction and its probability, marked if it is not the label.

    Args:
        views: the networks' views of the image.
        label: name of the image's class, if it is known.
        colours: of the networks' names.
    """
    said = f"label:\n{wrapped(label)}" if label else ""
    panels = [("image", views[0].pixels, said, INK)]
    for index, view in enumerate(views):
        colour = colours[index] if index < len(colours) else INK
        said = f"{mark(view, label)}{wrapped(view.prediction)}\n{view.probability:.1%}"
        panels.append((wrapped(view.run), overlay(view.pixels, view.heat), said, colour))
    columns = min(len(panels), _IN_A_ROW)
    rows = -(-len(panels) // columns)
    lines = max(above.count("\n") + below.count("\n") + 2 for above, _, below, _ in panels)
    height = _WIDTH / columns + lines * _LINE + 0.15
    figure = Figure(figsize=(_WIDTH, rows * height))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for each, panel in zip(axes, panels, strict=False):
        _draw(each, *panel)
    for left in range(len(panels), rows * columns):
        axes[left].remove()
    return figure


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image in grey with colours on top where the heat is, ``(H, W, 3)``, uint8."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[..., None]
    coloured = colormaps[_MAP](0.25 + 0.7 * heat)[..., :3] * 255
    share = _STRONGEST * np.clip(heat, 0, 1)[..., None]
    return np.round((1 - share) * grey + share * coloured).astype(np.uint8)


def mark(view: View, label: str | None) -> str:
    """Return a cross for a prediction that is not the label."""
    return "" if label is None or view.prediction == label else "\N{BALLOT X} "


def wrapped(name: str) -> str:
    """Return a name in at most three lines, broken after spaces, underscores, slashes and dots.

    Example:
        >>> print(wrapped("digits_squeeze_excite_seed17"))
        digits_squeeze_
        excite_seed17
    """
    # Lines end at blanks: those of the name itself are marked, the others are removed again.
    marked = re.sub(r"([_/.])(?=.)", r"\1 ", name.replace(" ", f"{_BLANK} "))
    wrapped_lines = textwrap.wrap(marked, _LETTERS) or [""]
    lines = [line.replace(" ", "").replace(_BLANK, " ").strip() for line in wrapped_lines]
    return "\n".join(lines if len(lines) <= 3 else [lines[0], "\N{HORIZONTAL ELLIPSIS}", lines[-1]])


def _draw(axes: Axes, above: str, pixels: np.ndarray, below: str, colour: str) -> None:
    height, width = pixels.shape[:2]
    factor = max(1, -(-_SIDE // max(height, width)))
    enlarged = Image.fromarray(pixels).resize(
        (width * factor, height * factor), Image.Resampling.BICUBIC
    )
    axes.imshow(np.asarray(enlarged), interpolation="none")
    axes.set_title(above, color=colour, fontsize=_FONT, fontweight="bold")
    axes.set_xlabel(below, color=INK, fontsize=_FONT)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
