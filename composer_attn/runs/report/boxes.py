"""Objects in images, as they are and as they were detected, drawn over the image."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torchvision.ops import box_iou

from composer_attn.runs.tasks.task import Example

_OVERLAP = 0.5  # intersection over union from which an object counts as found
_ALPHA = 0.45
_HEADROOM = 0.06  # of the height of an image, which the name of a class takes


def draw_boxes(axes: Axes, example: Example, what: str, names: Sequence[str]) -> None:
    """Draw objects with their classes, and their masks or keypoints if they have any.

    Args:
        axes: axes that show the image.
        example: ``truth_boxes`` and so on; see
            :func:`~composer_attn.runs.tasks.detection.examples_of`.
        what: ``truth`` or ``predicted``.
        names: names of the classes, from label 1 on.
    """
    labels = example[f"{what}_labels"].astype(int)
    for index, (box, label) in enumerate(zip(example[f"{what}_boxes"], labels, strict=True)):
        # The middle of the first pixel is at 0, and its corner, from which boxes count, before it.
        left, top, right, bottom = (box - 0.5).tolist()
        colour = colormaps["tab10"](label % 10)
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, lw=1.2)
        )
        name = names[label - 1] if label <= len(names) else str(label)
        style = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
        above = max(top, _HEADROOM * example["image"].shape[-2])  # else it would be cut off
        axes.text(
            left, above, name, fontsize=5, color="white", va="bottom", bbox=style, clip_on=True
        )
        _draw_mask(axes, example.get(f"{what}_masks"), index, colour)
        _draw_points(axes, example.get(f"{what}_keypoints"), index, colour)


def objects_found(example: Example) -> str:
    """Write how many objects are found: by a box of the same class that overlaps by half.

    Example:
        >>> box, label = np.array([[0.0, 0.0, 9.0, 9.0]]), np.array([1.0])
        >>> found = {"truth_boxes": box, "truth_labels": label, "predicted_boxes": box,
        ...          "predicted_labels": label, "predicted_scores": np.array([0.9])}
        >>> objects_found(found)
        '1 of 1 found'
    """
    truth, boxes = (torch.from_numpy(example[f"{w}_boxes"]) for w in ("truth", "predicted"))
    overlaps = box_iou(boxes.double(), truth.double()).numpy()
    same = example["predicted_labels"][:, None] == example["truth_labels"][None]
    overlaps = np.where(same, overlaps, 0)
    found = 0
    for index in np.argsort(-example["predicted_scores"], kind="stable"):
        best = int(overlaps[index].argmax()) if len(truth) else 0
        if len(truth) and overlaps[index, best] >= _OVERLAP:
            found += 1
            overlaps[:, best] = 0  # an object is found once
    other = len(boxes) - found
    more = f", {other} other box{'es' if other > 1 else ''}" if other else ""
    return f"{found} of {len(truth)} found{more}"


def _draw_mask(axes: Axes, masks: np.ndarray | None, index: int, colour: tuple[float, ...]) -> None:
    if masks is not None:
        shown = np.zeros((*masks[index].shape, 4))
        shown[masks[index]] = (*colour[:3], _ALPHA)
        axes.imshow(shown, interpolation="nearest")


def _draw_points(
    axes: Axes, keypoints: np.ndarray | None, index: int, colour: tuple[float, ...]
) -> None:
    if keypoints is not None:
        x, y, visible = (keypoints[index] - [0.5, 0.5, 0]).T
        axes.plot(x[visible > 0], y[visible > 0], "o", color=colour, ms=2)
