"""Keypoints: the points of an object, such as the joints of a person, as COCO annotates them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError
from composer_attn.runs.data.detection.annotated import BadAnnotationError


@dataclass(frozen=True)
class Keypoints:
    """The keypoints that every object of a dataset has.

    Attributes:
        names: their names, in the order of the annotations.
        swapped: the index of each in a mirrored image, where left and right change places.

    Example:
        >>> category = {"keypoints": ["nose", "left_eye", "right_eye"]}
        >>> Keypoints.of([category], "train.json").swapped
        (0, 2, 1)
        >>> Keypoints.named(("left", "right", "top")).swapped
        (1, 0, 2)
    """

    names: tuple[str, ...]
    swapped: tuple[int, ...]

    @classmethod
    def of(cls, categories: Sequence[Any], where: str) -> "Keypoints":
        """Take the keypoints from the categories of an annotation file.

        Raises:
            ArgumentError: they have none, or different ones.
        """
        named = {
            tuple(c.get("keypoints") or ()) if isinstance(c, Mapping) else () for c in categories
        }
        names = named.pop() if len(named) == 1 else ()
        if not names or len({*names}) < len(names) or not all(isinstance(n, str) for n in names):
            raise ArgumentError(
                f"{where}: every category must have the same keypoints, a list of different names"
            )
        return cls.named(names)

    @classmethod
    def named(cls, names: tuple[str, ...]) -> "Keypoints":
        """Return keypoints by their names, which say what is left and what is right."""
        index = {name: number for number, name in enumerate(names)}
        return cls(names, tuple(index.get(_mirrored(name), index[name]) for name in names))

    def check(self, values: Any) -> None:
        """Check the keypoints of an object: x, y and visibility of each, in one list.

        Raises:
            BadAnnotationError: these are not three numbers for each.
        """
        count = 3 * len(self.names)
        if not isinstance(values, list) or len(values) != count or not all(map(is_real, values)):
            raise BadAnnotationError(
                "objects without their keypoints", f"its keypoints are not {count} numbers"
            )

    def stacked(self, objects: Sequence[Any]) -> np.ndarray:
        """Return the keypoints of objects, ``(N, K, 3)``; those of a crowd are not annotated."""
        count = 3 * len(self.names)
        rows = [
            values if isinstance(values := each.get("keypoints"), list) and len(values) == count
            else [0.0] * count
            for each in objects
        ]  # fmt: skip
        return np.asarray(rows, np.float32).reshape(-1, len(self.names), 3)


def _mirrored(name: str) -> str:
    for side, other in (("left", "right"), ("right", "left")):
        if side in name:
            return name.replace(side, other)
    return name
