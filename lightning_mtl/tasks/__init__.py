"""Tasks: a head, a loss and metrics for every kind of target."""

from lightning_mtl.tasks.base import Task
from lightning_mtl.tasks.classification import (
    BinaryClassification,
    MulticlassClassification,
    MultilabelClassification,
)
from lightning_mtl.tasks.dense_regression import DenseRegression
from lightning_mtl.tasks.depth import Depth
from lightning_mtl.tasks.detection import FCOS, DetectionTask, FasterRCNN, RetinaNet
from lightning_mtl.tasks.edges import Edges, Saliency
from lightning_mtl.tasks.normals import SurfaceNormals
from lightning_mtl.tasks.ordinal import OrdinalClassification
from lightning_mtl.tasks.regression import Regression
from lightning_mtl.tasks.segmentation import SemanticSegmentation
from lightning_mtl.tasks.text import (
    LanguageModeling,
    MultipleChoice,
    MultiRC,
    Retrieval,
    SpanQuestionAnswering,
    TextClassification,
    TextRegression,
    TextToText,
    TokenClassification,
)

__all__ = [
    "FCOS",
    "BinaryClassification",
    "DenseRegression",
    "Depth",
    "DetectionTask",
    "Edges",
    "FasterRCNN",
    "LanguageModeling",
    "MultiRC",
    "MulticlassClassification",
    "MultilabelClassification",
    "MultipleChoice",
    "OrdinalClassification",
    "Regression",
    "RetinaNet",
    "Retrieval",
    "Saliency",
    "SemanticSegmentation",
    "SpanQuestionAnswering",
    "SurfaceNormals",
    "Task",
    "TextClassification",
    "TextRegression",
    "TextToText",
    "TokenClassification",
]
