"""A few evaluation images of a run, and several networks' views of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from composer_attn.errors import ComposerAttnError, ConfigError
from composer_attn.runs.config.config_errors import Mistake, foreign
from composer_attn.runs.heatmaps.views import View
from composer_attn.runs.inference import LoadedRun
from composer_attn.runs.inference.evaluate import evaluation_data

_AMONG = 4


@dataclass(frozen=True)
class Looked:
    """Several networks' views of an evaluation image.

    Attributes:
        label: name of its class.
        views: one for each network.
    """

    label: str
    views: tuple[View, ...]


def evaluation_images(run: LoadedRun, count: int) -> tuple[Tensor, list[str]]:
    """Return evaluation images ``(N, 3, H, W)`` as a run's network takes them, and their classes.

    They are of as many classes as there are among four times as many images, which are spread
    evenly over the data; of a stream, these are its first. There are fewer than ``count`` if the
    data hold fewer, or some cannot be read and are skipped.

    Raises:
        ConfigError: there is no evaluation data, it cannot be read, or its classes differ.
    """
    source, data = evaluation_data(run, _AMONG * count, _AMONG * count)
    try:
        images, labels = next(iter(data.dataloader))
    except ComposerAttnError:
        raise
    except Exception as error:  # from the data
        raise ConfigError(Mistake("eval_dataset", foreign(error))) from error
    rows = varied(labels.tolist(), count)
    images = images[rows]
    prepared = source.device_transform(images) if source.device_transform else images
    return prepared.contiguous(), [run.classes[int(labels[row])] for row in rows]


def varied(labels: Sequence[int], count: int) -> list[int]:
    """Return the places of ``count`` labels, in order, that repeat as few classes as possible.

    Example:
        >>> varied([1, 1, 7, 1, 3], 3), varied([1, 1, 7, 1, 3], 4)
        ([0, 2, 4], [0, 1, 2, 4])
    """
    seen: Counter[int] = Counter()
    repeats = []
    for label in labels:
        repeats.append(seen[label])
        seen[label] += 1
    return sorted(sorted(range(len(labels)), key=lambda place: repeats[place])[:count])
