"""The ``composer-attn`` command. What a verb needs is imported when the verb runs."""

from composer_attn.cli import training  # isort: split

from composer_attn.cli import inference
from composer_attn.cli.command import app

__all__ = ["app", "inference", "training"]
