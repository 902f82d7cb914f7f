"""Watch a run for training instabilities, and act on them."""

from lightning_mtl.callbacks.instability.alarms import Alarm, InstabilityError, InstabilityWarning
from lightning_mtl.callbacks.instability.monitor import InstabilityMonitor

__all__ = ["Alarm", "InstabilityError", "InstabilityMonitor", "InstabilityWarning"]
