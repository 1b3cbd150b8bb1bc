"""A few evaluation images of a run, and several networks' views of them."""

from dataclasses import dataclass

from torch import Tensor

from composer_attn.errors import ComposerAttnError, ConfigError
from composer_attn.runs.config.config_errors import Mistake, foreign
from composer_attn.runs.heatmaps.views import View
from composer_attn.runs.inference import LoadedRun
from composer_attn.runs.inference.evaluate import evaluation_data


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

    They are spread evenly over the data; of a stream, they are its first. There are fewer than
    ``count`` if the data hold fewer, or some cannot be read and are skipped.

    Raises:
        ConfigError: there is no evaluation data, it cannot be read, or its classes differ.
    """
    source, data = evaluation_data(run, count, count)
    try:
        images, labels = next(iter(data.dataloader))
    except ComposerAttnError:
        raise
    except Exception as error:  # from the data
        raise ConfigError(Mistake("eval_dataset", foreign(error))) from error
    prepared = source.device_transform(images) if source.device_transform else images
    return prepared.contiguous(), [run.classes[int(label)] for label in labels]
