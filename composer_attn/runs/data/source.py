"""What every dataset of ours comes as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Source:
    """A dataset, and what batching it takes.

    Attributes:
        dataset: pairs of an image and a label; for a stream, what builds one of them, given
            ``batch_size`` (of this rank), ``shuffle`` and ``shuffle_seed``.
        num_classes: labels are 0 to ``num_classes - 1``.
        image_shape: ``(channels, height, width)`` of what the network sees.
        classes: the names of the classes, where they have any.
        collate: makes a batch of samples; PyTorch's default without.
        device_transform: changes a batch of images where it is used, on the device.
        random: whether a sample is drawn at random (augmented) each time.
        streams: whether ``dataset`` builds a stream.
        passed_over: how many files were not taken for samples, by their endings.
        skipped: returns the number of samples left out so far, unreadable.
    """

    dataset: Dataset | Callable[..., Any]
    num_classes: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...] = ()
    collate: Callable[[list], Any] | None = None
    device_transform: Callable[[Tensor], Tensor] | None = None
    random: bool = False
    streams: bool = False
    passed_over: Mapping[str, int] = field(default_factory=dict)
    skipped: Callable[[], int] = int
