"""What attention does while it trains."""

from composer_attn.callbacks.excitation_monitor import ExcitationMonitor

__all__ = ["ExcitationMonitor"]
