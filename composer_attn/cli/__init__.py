"""The ``composer-attn`` command. Each subcommand imports what it needs when it runs."""

from composer_attn.cli import training  # isort: split

from composer_attn.cli import inference, measuring, scaling
from composer_attn.cli.command import app

__all__ = ["app", "inference", "measuring", "scaling", "training"]
