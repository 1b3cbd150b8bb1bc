"""The models available in a config."""

from composer_attn.runs.models.build import (
    MODEL_ARGUMENTS,
    build_model,
    build_network,
    num_classes_of,
    with_num_classes,
)
from composer_attn.runs.models.sync_norms import synchronize_norms
from composer_attn.runs.models.table import MODELS

__all__ = [
    "MODELS",
    "MODEL_ARGUMENTS",
    "build_model",
    "build_network",
    "num_classes_of",
    "synchronize_norms",
    "with_num_classes",
]
