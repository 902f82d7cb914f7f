"""Text of several tasks: files, tokens, batches."""

from lightning_mtl.data.text.symbols import SymbolTokenizer

__all__ = ["SymbolTokenizer"]
