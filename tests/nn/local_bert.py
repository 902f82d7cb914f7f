"""A tiny BERT with random weights and its tokenizer in a folder, as ``save_pretrained`` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mtl.data.text import TokenizerTraining
from lightning_mtl.nn import TransformersEncoder


def write_bert(folder: Path, texts: Sequence[str]) -> Path:
    tokenizer = TokenizerTraining(vocab_size=200).train(list(texts))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = TransformersEncoder("bert", config={**sizes, "vocab_size": len(tokenizer)})
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder
