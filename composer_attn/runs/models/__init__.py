"""The models that a config can name."""

from composer_attn.runs.models.build import build_model
from composer_attn.runs.models.table import MODELS

__all__ = ["MODELS", "build_model"]
