"""The common form of all datasets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Source:
    """A dataset, and how to batch it.

    Attributes:
        dataset: pairs of an image and a label; for a stream, a function that builds it from
            ``batch_size`` (of this rank), ``shuffle`` and ``shuffle_seed``.
        num_classes: labels are 0 to ``num_classes - 1``.
        image_shape: ``(channels, height, width)`` of the network's input.
        classes: the names of the classes, if known.
        collate: makes a batch of samples; PyTorch's default if None.
        device_transform: transforms a batch of images on the device.
        random: whether samples are augmented at random.
        streams: whether ``dataset`` is a function that builds a stream.
        passed_over: number of files that were not taken as samples, by extension.
        skipped: returns the number of unreadable samples left out so far.
        count: returns the number of samples in a batch; by default the length of its first tensor
            or list.
        split: splits a batch into microbatches of at most a number of samples; by default Composer
            splits tensors and lists.
        keypoints: number of keypoints of each object; 0 if objects have none.
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
    count: Callable[[Any], int] | None = None
    split: Callable[[Any, int | float], Sequence[Any]] | None = None
    keypoints: int = 0
