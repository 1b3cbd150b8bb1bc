"""The datasets available in a config."""

from collections.abc import Callable

from composer_attn.runs.data.cifar import cifar10, cifar100
from composer_attn.runs.data.digits import digits
from composer_attn.runs.data.image_folder import image_folder
from composer_attn.runs.data.loader import LOADER_ARGUMENTS, build_loader
from composer_attn.runs.data.mds import mds
from composer_attn.runs.data.named_datasets import NAMED_DATASETS
from composer_attn.runs.data.source import Source
from composer_attn.runs.data.synthetic import synthetic

DATASETS: dict[str, Callable[..., Source]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "digits": digits,
    "image_folder": image_folder,
    "mds": mds,
    "synthetic": synthetic,
    **NAMED_DATASETS,
}

__all__ = ["DATASETS", "LOADER_ARGUMENTS", "Source", "build_loader"]
