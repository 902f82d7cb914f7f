"""A small Transformer encoder of text that is trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from lightning_mtl.nn.encoders.language_model import same_segment
from lightning_mtl.nn.encoders.text_base import TextEncoder, TextFeatures
from lightning_mtl.nn.tiny_decoder import TinyDecoder


class TextTransformer(TextEncoder):
    """Encode texts with a small bidirectional Transformer, as one vector each or as tokens.

    Embeddings of tokens, of positions and of segments, pre-norm blocks in which every token sees all others of its text
    but no padding, and a final norm: :class:`~lightning_mtl.nn.TinyDecoder` without the causal order.

    Args:
        vocab_size: Number of tokens of the tokenizer.
        features: ``"mean"`` for the mean over the tokens of a text, ``"cls"`` for the state of its first token,
            ``"tokens"`` for the states of all tokens, those of padding zero.
        dim: Width D, a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: Hidden width of the feed-forward networks over ``dim``.
        positions: ``"learned"`` adds an embedding, ``"rope"`` rotates queries and keys.
        max_length: Longest text, in tokens.
        num_token_types: Number of segments that ``token_type_ids`` tells apart, 0 to leave these out of the model.
        dropout: Probability of dropping an embedding, an attention weight or a value added to the residual stream.

    Shape:
        - inputs: mapping with ``input_ids`` ``(..., L)`` int64; optional ``attention_mask`` (1 for tokens),
          ``token_type_ids``, and for rows that hold several texts ``position_ids`` and ``segment_ids``. Returns
          ``(..., D)``, or ``(..., L, D)`` with ``features="tokens"``.

    Raises:
        ValueError: If an argument is out of range, a token is not in the vocabulary or a text is too long.

    Example:
        >>> import torch
        >>> encoder = TextTransformer(vocab_size=30, dim=16, depth=1, num_heads=2)
        >>> ids = torch.tensor([[2, 7, 3, 0], [2, 9, 8, 3]])
        >>> encoder({"input_ids": ids, "attention_mask": (ids > 0).long()}).shape
        torch.Size([2, 16])

    References:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin. *Attention Is All You Need*. NeurIPS
        2017. https://arxiv.org/abs/1706.03762
    """

    def __init__(
        self,
        vocab_size: int,
        features: TextFeatures = "mean",
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        positions: Literal["learned", "rope"] = "learned",
        max_length: int = 512,
        num_token_types: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if positions not in ("learned", "rope"):
            raise ValueError(f"TextTransformer: positions must be 'learned' or 'rope', got {positions!r}.")
        if num_token_types < 0:
            raise ValueError(f"TextTransformer: num_token_types must not be negative, got {num_token_types}.")
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.declare(features, dim)
        self.network = TinyDecoder(
            vocab_size,
            dim,
            depth,
            num_heads,
            mlp_ratio,
            qk_norm=None,
            positions=positions,
            max_length=max_length,
            head=False,
            causal=False,
            dropout=dropout,
        )
        self.token_types = nn.Embedding(num_token_types, dim) if num_token_types else None
        if self.token_types is not None:
            nn.init.normal_(self.token_types.weight, std=dim**-0.5)

    def encode(self, inputs: Mapping[str, Tensor], real: Tensor) -> Tensor:
        """Return the state of every token."""
        ids = inputs["input_ids"]
        added = None
        if self.token_types is not None:
            types = inputs.get("token_type_ids")
            added = self.token_types.weight[0] if types is None else self.token_types(types)
        if "segment_ids" in inputs:
            mask = same_segment(inputs["segment_ids"])
        else:
            # a text without tokens would see nothing, which is no distribution: it sees its padding
            mask = (real | ~real.any(dim=1, keepdim=True))[:, None, None, :]
        return self.network.features(ids, inputs.get("position_ids"), mask, added)
