"""What the encoders of text share: how they read a batch and pool its tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_mtl.nn.encoders.language_model import check_vocabulary
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec

TextFeatures = Literal["cls", "mean", "tokens"]


class TextEncoder(nn.Module, Recorded, ABC):
    """Base of the encoders that see a whole text at once.

    Subclasses set ``vocab_size`` and ``max_length``, call ``declare`` and implement ``encode``.

    Shape:
        - inputs: mapping with ``input_ids`` ``(..., L)`` and, where the subclass knows them, ``attention_mask``,
          ``token_type_ids``, ``position_ids`` and ``segment_ids`` of the same shape; a tensor is taken as
          ``input_ids``. Returns ``(..., D)``, or ``(..., L, D)`` for tokens.
    """

    vocab_size: int
    max_length: int | None

    def declare(self, features: TextFeatures, dim: int) -> None:
        """Set ``features`` and ``feature_spec``."""
        if features not in ("cls", "mean", "tokens"):
            raise ValueError(f"{type(self).__name__}: features must be 'cls', 'mean' or 'tokens', got {features!r}.")
        self.features = features
        self.feature_spec = FeatureSpec("tokens" if features == "tokens" else "vector", (dim,))

    @abstractmethod
    def encode(self, inputs: Mapping[str, Tensor], real: Tensor) -> Tensor:
        """Return the state of every token.

        Args:
            inputs: As for ``forward``, with one leading dimension.
            real: ``(N, L)``, boolean, false for padding.

        Returns:
            ``(N, L, D)``; those of padding do not matter.
        """

    def forward(self, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Return the vector of every text, or the states of its tokens, zero for padding."""
        given = {"input_ids": inputs} if isinstance(inputs, Tensor) else inputs
        self._check(given)
        ids = given["input_ids"]
        leading, length = ids.shape[:-1], ids.shape[-1]
        text = {
            name: value.reshape(-1, length)
            for name, value in given.items()
            if isinstance(value, Tensor) and value.shape == ids.shape
        }
        if "segment_ids" in text:
            real = text["segment_ids"] > 0
        elif "attention_mask" in text:
            real = text["attention_mask"] != 0
        else:
            real = torch.ones_like(text["input_ids"], dtype=torch.bool)
        states = self.encode(text, real)
        if self.features == "cls":
            return states[:, 0].reshape(*leading, -1)
        states = states * real.unsqueeze(-1).to(states.dtype)
        if self.features == "mean":
            pooled = states.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1).to(states.dtype)
            return pooled.reshape(*leading, -1)
        return states.reshape(*leading, length, -1)

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        name = type(self).__name__
        if "input_ids" not in inputs:
            raise ValueError(f"{name}: inputs must hold 'input_ids', got {sorted(inputs)}; take a data module of text.")
        ids = inputs["input_ids"]
        if ids.ndim < 2 or ids.is_floating_point():
            raise ValueError(f"{name}: input_ids must be integers (..., L), got {tuple(ids.shape)} of {ids.dtype}.")
        for key in ("attention_mask", "token_type_ids", "position_ids", "segment_ids"):
            if key in inputs and inputs[key].shape != ids.shape:
                raise ValueError(
                    f"{name}: {key} must have the shape of input_ids, {tuple(ids.shape)}, got "
                    f"{tuple(inputs[key].shape)}."
                )
        if self.max_length is not None and ids.shape[-1] > self.max_length:
            raise ValueError(
                f"{name}: a text must have at most {self.max_length} tokens, got {ids.shape[-1]}; lower max_length of "
                "the data module, or take a model for longer texts."
            )
        if self.features != "tokens" and "segment_ids" in inputs:
            raise ValueError(
                f"{name}: rows with several packed texts (segment_ids) have no single vector; set features='tokens' or "
                "do not pack."
            )
        check_vocabulary(name, ids, self.vocab_size)
