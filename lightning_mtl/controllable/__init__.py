"""Networks whose encoder and decoders are narrowed after training, by budget and by preference."""

from lightning_mtl.controllable.controllability import Controllability, controllability, hypervolume
from lightning_mtl.controllable.module import ControllableModule, WidthConfig
from lightning_mtl.controllable.search import WidthSearchResult, decoder_widths, search_widths
from lightning_mtl.controllable.width_metrics import WidthMetrics

__all__ = [
    "Controllability",
    "ControllableModule",
    "WidthConfig",
    "WidthMetrics",
    "WidthSearchResult",
    "controllability",
    "decoder_widths",
    "hypervolume",
    "search_widths",
]
