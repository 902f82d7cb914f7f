"""Tasks on text."""

from lightning_mtl.tasks.text.language_modeling import LanguageModeling
from lightning_mtl.tasks.text.multiple_choice import MultipleChoice
from lightning_mtl.tasks.text.multirc import MultiRC
from lightning_mtl.tasks.text.retrieval import Retrieval
from lightning_mtl.tasks.text.sentence import TextClassification, TextRegression
from lightning_mtl.tasks.text.span_question_answering import SpanQuestionAnswering
from lightning_mtl.tasks.text.text_to_text import TextToText
from lightning_mtl.tasks.text.token_classification import TokenClassification

__all__ = [
    "LanguageModeling",
    "MultiRC",
    "MultipleChoice",
    "Retrieval",
    "SpanQuestionAnswering",
    "TextClassification",
    "TextRegression",
    "TextToText",
    "TokenClassification",
]
