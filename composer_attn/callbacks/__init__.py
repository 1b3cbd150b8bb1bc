"""Callbacks that monitor attention during training."""

from composer_attn.extras import naming_the_extra

with naming_the_extra("a Composer callback", "composer"):
    from composer_attn.callbacks.excitation_monitor import ExcitationMonitor

__all__ = ["ExcitationMonitor"]
