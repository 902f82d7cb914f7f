"""Text of several tasks: files, tokens, batches."""

from lightning_mtl.data.text.base import TextDataModule, TextOptions
from lightning_mtl.data.text.box import BOX_TASKS, BoXDataModule, BoXTask
from lightning_mtl.data.text.dataset import TextDataset
from lightning_mtl.data.text.emobank import EmoBankDataModule
from lightning_mtl.data.text.folder import TextFolderDataModule, TextFolderTask
from lightning_mtl.data.text.glue import GLUEDataModule
from lightning_mtl.data.text.instruction_files import InstructionMixtureDataModule, TaskFiles
from lightning_mtl.data.text.instruction_tuning import InstructionDataModule, InstructionDataset, TokenCounts
from lightning_mtl.data.text.instructions import InstructionMixture, InstructionOptions, cut_shares
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
from lightning_mtl.data.text.string_tasks import STRING_TASKS, StringTasksDataModule
from lightning_mtl.data.text.superglue import SuperGLUEDataModule
from lightning_mtl.data.text.symbols import SymbolTokenizer
from lightning_mtl.data.text.templates import InstructionExample, InstructionTemplate, read_templates
from lightning_mtl.data.text.tokenizers import TokenizerLike, TokenizerTraining

__all__ = [
    "BOX_TASKS",
    "STRING_TASKS",
    "Answers",
    "BoXDataModule",
    "BoXTask",
    "Choice",
    "Classes",
    "EmoBankDataModule",
    "GLUEDataModule",
    "Generation",
    "InstructionDataModule",
    "InstructionDataset",
    "InstructionExample",
    "InstructionMixture",
    "InstructionMixtureDataModule",
    "InstructionOptions",
    "InstructionTemplate",
    "Numbers",
    "Pair",
    "SICKDataModule",
    "Score",
    "Span",
    "StringTasksDataModule",
    "SuperGLUEDataModule",
    "SymbolTokenizer",
    "Tags",
    "TaskFiles",
    "TextDataModule",
    "TextDataset",
    "TextFolderDataModule",
    "TextFolderTask",
    "TextOptions",
    "TextRecords",
    "TokenCounts",
    "TokenizerLike",
    "TokenizerTraining",
    "cut_shares",
    "read_templates",
]
