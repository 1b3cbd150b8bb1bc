"""Compare a network with its exported file on the same images."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer_attn.errors import ExportError, first_line
from composer_attn.runs.inference.formats import Compute
from composer_attn.runs.inference.int8 import Int8

# Added to height and width for a second image size: different, and multiples of usual strides.
_TALLER, _WIDER = 32, 64


@dataclass(frozen=True)
class ExportComparison:
    """Comparison of a network and its exported file on the same images.

    Attributes:
        samples: number of images.
        accuracy_before: accuracy of the network, from 0 to 1.
        accuracy_after: accuracy of the file, from 0 to 1.
        agreement: share of the images for which both name the same class, from 0 to 1.
        largest_difference: between their outputs, in units of the largest output (at least 1).
    """

    samples: int
    accuracy_before: float
    accuracy_after: float
    agreement: float
    largest_difference: float

    def objection(self, tolerance: float) -> str:
        """Return why the file is not accepted as equal to the network; empty if it is."""
        if self.largest_difference <= tolerance:
            return ""
        return (
            f"on {self.samples:,} evaluation images its outputs differ from the network's by up to "
            f"{self.largest_difference:.1e} of the largest, more than the tolerance of "
            f"{tolerance:g}"
        )

    def objection_to_int8(self, int8: Int8) -> str:
        """Return why the quantized file is not accepted; empty if it is."""
        if self.largest_difference == inf:
            return "its outputs are not finite, or have another shape than the network's"
        drop = self.accuracy_before - self.accuracy_after
        if drop > int8.accuracy_drop:
            return (
                f"on {self.samples:,} evaluation images its accuracy is "
                f"{self.accuracy_after:.2%}, and the network's {self.accuracy_before:.2%}: a "
                f"larger drop than the accepted {int8.accuracy_drop:g}"
            )
        if self.agreement < int8.agreement:
            return (
                f"it predicts the same class as the network for {self.agreement:.2%} of "
                f"{self.samples:,} evaluation images, less than the accepted agreement of "
                f"{int8.agreement:g}"
            )
        return ""


def compare(
    network: nn.Module,
    compute: Compute,
    batches: Iterator[tuple[Tensor, Tensor]],
    dynamic_size: bool = False,
) -> ExportComparison:
    """Compare a network with its exported function on batches of images and labels.

    Args:
        network: the network, in evaluation mode.
        compute: the function that was read back from the file.
        batches: preprocessed images with their labels.
        dynamic_size: whether to compare also on the first images enlarged to a second size.

    Raises:
        ExportError: the file does not run on them.
    """
    count, right, agreed, largest = 0, [0, 0], 0, 0.0
    for images, labels in batches:
        parts = [images]
        if not count:
            # Also the first image alone, as an exporter may have fixed the batch size.
            parts = [images[:1], *([enlarged(images[:2])] if dynamic_size else []), images]
        with torch.inference_mode():
            pairs = [(network(part), _computed(compute, part)) for part in parts]
        largest = max(largest, *(_difference(*pair) for pair in pairs))
        count += len(labels)
        if largest == inf:
            return ExportComparison(count, 0.0, 0.0, 0.0, inf)
        before, after = (output.argmax(1) for output in pairs[-1])
        right = [n + int((g == labels).sum()) for n, g in zip(right, (before, after), strict=True)]
        agreed += int((before == after).sum())
    return ExportComparison(count, right[0] / count, right[1] / count, agreed / count, largest)


def enlarged(images: Tensor) -> Tensor:
    """Enlarge images ``(N, C, H, W)`` to ``(N, C, H + 32, W + 64)``."""
    size = (images.shape[2] + _TALLER, images.shape[3] + _WIDER)
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _computed(compute: Compute, images: Tensor) -> Tensor:
    try:
        return compute(images)
    except Exception as error:  # from the library that runs the file
        height, width = images.shape[2:]
        raise ExportError(
            f"the exported file does not run on {len(images)} images of {height}x{width}: "
            f"{first_line(error)}"
        ) from error


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return inf
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1))
    return difference if difference >= 0 else inf  # NaN compares false
