"""Networks whose encoder and decoders are narrowed after training, by budget and by preference."""

from lightning_mtl.controllable.module import ControllableModule, WidthConfig
from lightning_mtl.controllable.search import WidthSearchResult, decoder_widths, search_widths

__all__ = ["ControllableModule", "WidthConfig", "WidthSearchResult", "decoder_widths", "search_widths"]
