"""Tasks on text."""

from lightning_mtl.tasks.text.language_modeling import LanguageModeling

__all__ = ["LanguageModeling"]
