"""Settings of post-training quantization to eight-bit integers."""

from dataclasses import dataclass

from composer_attn.checks import is_real, whole_number
from composer_attn.errors import ArgumentError


@dataclass(frozen=True)
class Int8:
    """How to quantize an exported network, and how much its outputs may change.

    Attributes:
        calibration_images: number of training images from which the ranges of activations are
            observed; by default 128, or as many as there are.
        accuracy_drop: the largest accepted loss of accuracy, from 0 to 1 (0.01 is one percentage
            point).
        agreement: the smallest accepted share of evaluation images for which the file and the
            network name the same class, from 0 to 1.

    Raises:
        ArgumentError: a value is out of its range.

    Example:
        >>> from composer_attn.runs.inference.int8 import Int8
        >>> Int8(calibration_images=0)
        Traceback (most recent call last):
        composer_attn.errors.ArgumentError: calibration_images must be a whole number >= 1; got 0
    """

    calibration_images: int | None = None
    accuracy_drop: float = 0.01
    agreement: float = 0.95

    def __post_init__(self) -> None:
        if self.calibration_images is not None:
            whole_number("calibration_images", self.calibration_images, minimum=1)
        for name in ("accuracy_drop", "agreement"):
            value = getattr(self, name)
            if not is_real(value) or not 0 <= value <= 1:
                raise ArgumentError(f"{name} must be a number from 0 to 1; got {value!r}")
