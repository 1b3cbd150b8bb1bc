"""How large a scaled network is: parameters and multiply-accumulates, counted before training."""

import warnings
from dataclasses import dataclass

import torch

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.errors import ComposerAttnError, ConfigError, NothingAttendedWarning
from composer_attn.functional import apply_attention
from composer_attn.runs.config.config_errors import Mistake, at
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.data import LOADER_ARGUMENTS, Source
from composer_attn.runs.models import build_network, with_num_classes
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.training.build import build_algorithms
from composer_attn.runs.training.network_cost import count_macs, count_parameters

# Beyond reason: more than any network or image in the literature of image classification.
MOST_PARAMETERS = 10**10
MOST_MACS = 10**13
LARGEST_IMAGE = 4096


@dataclass(frozen=True)
class Data:
    """What a search has to know of a recipe's data.

    Attributes:
        num_classes: number of classes.
        image_shape: ``(channels, height, width)`` of the training images.
        evaluated: number of evaluation images; ``None`` for a stream.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    evaluated: int | None


@dataclass(frozen=True)
class Size:
    """The size of a network.

    Attributes:
        image: height of its training images in pixels.
        parameters: number of parameters, with added attention.
        macs: multiply-accumulates of one image, measured by running the network.
    """

    image: int
    parameters: int
    macs: int


def read_data(config: RunConfig) -> Data:
    """Open the datasets of a recipe.

    Raises:
        ConfigError: there is no evaluation dataset, or one of them cannot be opened.
    """
    if not config.eval_dataset:
        message = "is needed: the networks of a search are compared by their accuracy on it"
        raise ConfigError(Mistake("eval_dataset", message))
    _check_image(config.train_dataset.get("size", 1))
    train = _open(config, "train_dataset")
    evaluation = _open(config, "eval_dataset")
    length = None if evaluation.streams else len(evaluation.dataset)  # type: ignore[arg-type]
    return Data(train.num_classes, train.image_shape, length)


def _open(config: RunConfig, key: str) -> Source:
    section = {k: v for k, v in getattr(config, key).items() if k not in LOADER_ARGUMENTS}
    with at(key):
        return CLASSIFICATION.datasets[section.pop("name")](**section)


def _check_image(size: int) -> None:
    if not 1 <= size <= LARGEST_IMAGE:
        message = f"must be from 1 to {LARGEST_IMAGE} pixels; got {size}"
        raise ConfigError(Mistake("train_dataset.size", message))


def size_of(config: RunConfig, data: Data) -> Size:
    """Measure the network of a config, attention included, on an image of its training data.

    Args:
        config: the config, whose dataset section may set another image size than the data has.
        data: of the recipe.

    Raises:
        ConfigError: the network or its image is beyond reason, or it cannot be run on it.
    """
    channels, height, width = data.image_shape
    size = config.train_dataset.get("size")
    shape = (channels, height, width) if size is None else (channels, size, size)
    _check_image(max(shape[1:]))
    try:
        found = _measure(config, data, shape, "meta")
    except ComposerAttnError:
        # Some networks compute with values in their constructor or forward.
        found = _measure(config, data, shape, "cpu")
    if found.parameters > MOST_PARAMETERS or found.macs > MOST_MACS:
        message = (
            f"{found.parameters:,} parameters and {found.macs:,} multiply-accumulates: at most "
            f"{MOST_PARAMETERS:,} and {MOST_MACS:,} are supported"
        )
        raise ConfigError(Mistake("model", message))
    return found


def _measure(config: RunConfig, data: Data, shape: tuple[int, int, int], device: str) -> Size:
    section = with_num_classes(config.model, data.num_classes)
    with at("model"), torch.device(device):
        network = build_network(section)
    for algorithm in build_algorithms(config, None):
        if isinstance(algorithm, AttentionAlgorithm):
            with at(f"algorithms.{algorithm.key}"), warnings.catch_warnings():
                warnings.simplefilter("ignore", NothingAttendedWarning)
                apply_attention(network, algorithm.key, **algorithm.arguments)
    with at("model"):
        macs = count_macs(network, torch.zeros(1, *shape, device=device))
    return Size(shape[1], count_parameters(network), macs)
