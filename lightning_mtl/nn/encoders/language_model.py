"""Causal language models as encoders: tokens in, logits of the next token out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.tiny_decoder import NormName, TinyDecoder


def same_segment(segment_ids: Tensor) -> Tensor:
    """Return which positions of a packed row belong to the same sample.

    Args:
        segment_ids: ``(B, L)``, the number of the sample that a token belongs to, 0 for padding.

    Returns:
        ``(B, 1, L, L)``, boolean. Padding belongs to padding.

    Example:
        >>> same_segment(torch.tensor([[1, 2, 2]]))[0, 0].int()
        tensor([[1, 0, 0],
                [0, 1, 1],
                [0, 1, 1]], dtype=torch.int32)
    """
    return (segment_ids.unsqueeze(-1) == segment_ids.unsqueeze(-2)).unsqueeze(-3)


def prompt_lengths(owner: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return how many tokens of every row are the prompt.

    That is ``prompt_length`` where the inputs have it, else the number of tokens that are not padding.

    Args:
        owner: Name of the calling class, for messages.
        inputs: A batch of text.

    Raises:
        ValueError: If a row has no prompt, or padding stands before a token.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    real = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
    if bool((real.diff(dim=1) > 0).any()):
        raise ValueError(f"{owner}: padding must stand on the right, got attention_mask rows that go from 0 to 1.")
    lengths = inputs.get("prompt_length", real.sum(dim=1))
    if bool((lengths < 1).any()):
        raise ValueError(f"{owner}: every row must have a prompt of at least one token, got none in some rows.")
    return lengths


def check_vocabulary(owner: str, ids: Tensor, vocab_size: int) -> None:
    """Raise ValueError if a token is not in the vocabulary; reads values on the CPU only, where it is cheap."""
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
        low, high = ids.aminmax()
        if int(low) < 0 or int(high) >= vocab_size:
            wrong = int(low) if int(low) < 0 else int(high)
            raise ValueError(
                f"{owner}: input_ids must be in 0..{vocab_size - 1} (vocab_size={vocab_size}), got {wrong}; take the "
                "model's own tokenizer, or a model with a vocabulary as large as the tokenizer's."
            )


class CausalLanguageModel(nn.Module, Recorded):
    """A small decoder-only Transformer whose features are the logits of the next token.

    All tasks share everything: the head of a :class:`~lightning_mtl.tasks.LanguageModeling` task gives the logits on.
    Rows may hold several packed samples (``segment_ids``). With ``packed_attention="separate"`` a token then sees the
    tokens of its own sample only, and positions start anew with every sample (``position_ids``); with ``"joint"``, what
    most code for instruction tuning does, samples see the samples before them, and positions run through the row.

    Args:
        vocab_size: Number of tokens V.
        dim: Width, a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: Hidden width of the feed-forward networks over ``dim``.
        qk_norm: Normalise every head's queries and keys; None for none.
        norm: Normalisation in the blocks and before the logits.
        positions: ``"rope"``, ``"learned"`` or ``"none"``.
        max_length: Longest sequence, prompt and generated tokens together.
        tie_head: Whether the logits use the embedding's weights.
        dropout: Probability of dropping an embedding, an attention weight or a value added to the residual stream.
        packed_attention: Whether the samples of a packed row see each other.
        pad_token_id: Token with which ``generate`` fills rows that have ended.
        eos_token_id: Token that ends a generated answer; None never ends one.

    Shape:
        - inputs: mapping with ``input_ids`` ``(B, L)`` int64; optional ``attention_mask`` (padding on the right, which
          the causal order makes harmless), ``position_ids``, ``segment_ids``; returns ``(B, L, V)``.

    Raises:
        ValueError: If an argument is out of range, a token is not in the vocabulary, or a row is too long.

    Example:
        >>> model = CausalLanguageModel(vocab_size=14, dim=16, depth=1)
        >>> model({"input_ids": torch.tensor([[3, 1, 4]])}).shape
        torch.Size([1, 3, 14])
        >>> model.generate({"input_ids": torch.tensor([[3, 1, 4]])}, max_new_tokens=2).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 32,
        depth: int = 2,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
        qk_norm: NormName | None = None,
        norm: NormName = "layernorm",
        positions: Literal["rope", "learned", "none"] = "rope",
        max_length: int = 512,
        tie_head: bool = False,
        dropout: float = 0.0,
        packed_attention: Literal["separate", "joint"] = "separate",
        pad_token_id: int = 0,
        eos_token_id: int | None = None,
    ) -> None:
        super().__init__()
        check_packed_attention("CausalLanguageModel", packed_attention)
        for argument, token in (("pad_token_id", pad_token_id), ("eos_token_id", eos_token_id)):
            if token is not None and not 0 <= token < vocab_size:
                raise ValueError(f"CausalLanguageModel: {argument} must be in 0..{vocab_size - 1}, got {token}.")
        self.vocab_size = vocab_size
        self.packed_attention = packed_attention
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.decoder = TinyDecoder(
            vocab_size,
            dim,
            depth,
            num_heads,
            mlp_ratio,
            qk_norm,
            norm,
            positions,
            max_length,
            tie_head,
            dropout=dropout,
        )
        self.feature_spec = FeatureSpec("tokens", (vocab_size,))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the next token at every position."""
        ids = inputs["input_ids"]
        check_vocabulary("CausalLanguageModel", ids, self.vocab_size)
        segments = inputs.get("segment_ids")
        if segments is None or self.packed_attention == "joint":
            return cast(Tensor, self.decoder(ids))
        return cast(Tensor, self.decoder(ids, inputs.get("position_ids"), same_segment(segments)))

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> Tensor:
        """Return the most likely continuation of every prompt, token by token.

        Args:
            inputs: As for ``forward``, one prompt a row; a row's first ``prompt_length`` tokens where that is given,
                for rows that hold the answer too.
            max_new_tokens: Longest answer.

        Returns:
            ``(B, T)`` with ``T <= max_new_tokens``: the new tokens up to and with the end token, then padding.

        Raises:
            ValueError: If there is no prompt, padding stands on the left, or the model's longest sequence is passed.
        """
        lengths = prompt_lengths("CausalLanguageModel", inputs)
        check_new_tokens("CausalLanguageModel", max_new_tokens)
        longest = int(lengths.max()) + max_new_tokens
        if longest > self.decoder.max_length:
            raise ValueError(
                f"CausalLanguageModel: prompt and answer must have at most max_length={self.decoder.max_length} "
                f"tokens, got {longest}; lower max_new_tokens or raise max_length."
            )
        tokens = inputs["input_ids"]
        check_vocabulary("CausalLanguageModel", tokens, self.vocab_size)
        tokens = nn.functional.pad(tokens[:, : int(lengths.max())], (0, max_new_tokens), value=self.pad_token_id)
        rows = torch.arange(len(tokens), device=tokens.device)
        found: list[Tensor] = []
        ended = torch.zeros_like(rows, dtype=torch.bool)
        for step in range(max_new_tokens):
            last = lengths + step  # where the new token of every row goes
            logits = self.decoder(tokens[:, : int(lengths.max()) + step])
            chosen = logits[rows, last - 1].argmax(dim=-1).masked_fill(ended, self.pad_token_id)
            tokens[rows, last] = chosen
            found.append(chosen)
            if self.eos_token_id is not None:
                ended = ended | (chosen == self.eos_token_id)
                if bool(ended.all()):
                    break
        return torch.stack(found, dim=1)


def check_packed_attention(owner: str, value: Any) -> None:
    """Raise ValueError unless the value is one of the two forms of attention in packed rows."""
    if value not in ("separate", "joint"):
        raise ValueError(f"{owner}: packed_attention must be 'separate' or 'joint', got {value!r}.")


def check_new_tokens(owner: str, value: int) -> None:
    """Raise ValueError unless at least one token is to be written."""
    if value < 1:
        raise ValueError(f"{owner}: max_new_tokens must be at least 1, got {value}.")
