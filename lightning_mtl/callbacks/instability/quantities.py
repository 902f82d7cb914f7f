"""The quantities that can be measured, and what has to be found of those that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_mtl.callbacks.instability.readings import Readings

Quantity = Literal["attention", "log_z", "activations", "gradients", "parameters", "updates"]
QUANTITIES: tuple[Quantity, ...] = ("attention", "log_z", "activations", "gradients", "parameters", "updates")


def require_found(
    readings: Readings,
    track: Sequence[Quantity] | None,
    attention: Sequence[str] | None,
    logits: str | Sequence[str] | Callable[[Any], Any] | None,
) -> None:
    """Raise MisconfigurationException if the first measurement has not found what was named.

    Args:
        readings: The measurement.
        track: Quantities that were asked for, None for what there is.
        attention: Names of attention modules that were asked for.
        logits: As in :class:`InstabilityMonitor`.
    """
    if not readings.attention and (attention is not None or "attention" in (track or ())):
        where = "" if attention is None else f" in modules named {list(attention)}"
        raise MisconfigurationException(
            f"InstabilityMonitor: no attention was seen in the first step{where}; leave track and attention at None, "
            "or name modules whose attention runs through F.scaled_dot_product_attention, nn.MultiheadAttention or a "
            "softmax between two matrix products."
        )
    asked = "log_z" in (QUANTITIES if track is None else track) and (logits != "auto" or track is not None)
    if not readings.log_z and asked and logits is not None:
        raise MisconfigurationException(
            "InstabilityMonitor: no output logits were seen in the first step; set logits to the names of the modules "
            "that return them, to a function of what training_step returns, or to None."
        )
