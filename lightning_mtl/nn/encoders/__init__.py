"""Encoders: ``forward(inputs) -> features``, described by their ``feature_spec``."""

from lightning_mtl.nn.encoders.feat_enhancer import FeatEnHancer
from lightning_mtl.nn.encoders.language_model import CausalLanguageModel
from lightning_mtl.nn.encoders.lenet import LeNetEncoder
from lightning_mtl.nn.encoders.lora import LoRA
from lightning_mtl.nn.encoders.mlp import MLPEncoder
from lightning_mtl.nn.encoders.quadratic import QuadraticNetwork
from lightning_mtl.nn.encoders.rotated_features import RotatedFeatures
from lightning_mtl.nn.encoders.seq2seq import TransformersSeq2Seq
from lightning_mtl.nn.encoders.smp_encoder import SmpEncoder
from lightning_mtl.nn.encoders.task_conditioned import TaskConditionedEncoder
from lightning_mtl.nn.encoders.text_transformer import TextTransformer
from lightning_mtl.nn.encoders.timm_encoder import TimmEncoder
from lightning_mtl.nn.encoders.transformers_causal_lm import TransformersCausalLM
from lightning_mtl.nn.encoders.transformers_encoder import TransformersEncoder

__all__ = [
    "CausalLanguageModel",
    "FeatEnHancer",
    "LeNetEncoder",
    "LoRA",
    "MLPEncoder",
    "QuadraticNetwork",
    "RotatedFeatures",
    "SmpEncoder",
    "TaskConditionedEncoder",
    "TextTransformer",
    "TimmEncoder",
    "TransformersCausalLM",
    "TransformersEncoder",
    "TransformersSeq2Seq",
]
