"""Text of several tasks: files, tokens, batches."""

from lightning_mtl.data.text.base import TextDataModule, TextOptions
from lightning_mtl.data.text.dataset import TextDataset
from lightning_mtl.data.text.emobank import EmoBankDataModule
from lightning_mtl.data.text.glue import GLUEDataModule
from lightning_mtl.data.text.records import (
    Answers,
    Choice,
    Classes,
    Generation,
    Numbers,
    Pair,
    Score,
    Span,
    Tags,
    TextRecords,
)
from lightning_mtl.data.text.sick import SICKDataModule
from lightning_mtl.data.text.superglue import SuperGLUEDataModule
from lightning_mtl.data.text.symbols import SymbolTokenizer
from lightning_mtl.data.text.tokenizers import TokenizerLike, TokenizerTraining

__all__ = [
    "Answers",
    "Choice",
    "Classes",
    "EmoBankDataModule",
    "GLUEDataModule",
    "Generation",
    "Numbers",
    "Pair",
    "SICKDataModule",
    "Score",
    "Span",
    "SuperGLUEDataModule",
    "SymbolTokenizer",
    "Tags",
    "TextDataModule",
    "TextDataset",
    "TextOptions",
    "TextRecords",
    "TokenizerLike",
    "TokenizerTraining",
]
