"""The datasets that a config can name."""

from composer_attn.runs.data.digits import digits
from composer_attn.runs.data.loader import LOADER_ARGUMENTS, build_loader
from composer_attn.runs.data.synthetic import synthetic

DATASETS = {"digits": digits, "synthetic": synthetic}

__all__ = ["DATASETS", "LOADER_ARGUMENTS", "build_loader"]
