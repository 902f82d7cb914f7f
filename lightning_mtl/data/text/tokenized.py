"""What data modules of tokens share, however their rows are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator
from typing_extensions import Unpack

from lightning_mtl.data.base import LoaderOptions, MultiTaskDataModule, Split
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.text.symbols import find_tokenizer
from lightning_mtl.data.text.tokenizers import TokenizerLike, TokenizerTraining, check_vocabulary


class TokenizedDataModule(MultiTaskDataModule):
    """Base of data modules of tokens: a tokenizer, and rows set aside for validation.

    Args:
        tokenizer: Folder of a tokenizer in the layout of ``save_pretrained``, a tokenizer, or what a subclass makes one
            of (``_make_tokenizer``).
        val_fraction: Part of the training rows that is set aside for validation.
        options: See :class:`~lightning_mtl.data.base.LoaderOptions`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        tokenizer: TokenizerTraining | TokenizerLike | str,
        val_fraction: float,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 < val_fraction < 1:
            raise ValueError(f"{type(self).__name__}: val_fraction must be between 0 and 1, got {val_fraction}.")
        self.val_fraction = val_fraction
        self._tokenizer_argument = tokenizer
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; it is loaded, or trained, when it is first asked for."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        return self._tokenizer

    def _make_tokenizer(self) -> Any:
        given = self._tokenizer_argument
        return find_tokenizer(type(self).__name__, given) if isinstance(given, str) else given

    @property
    def pad_token_id(self) -> int:
        """What batches are padded with: the tokenizer's padding, else its end token."""
        for value in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if value is not None:
                return int(value)
        raise ValueError(
            f"{type(self).__name__}: tokenizer must have a padding token or an end token, "
            f"{type(self.tokenizer).__name__} has neither; set tokenizer.pad_token and save it again."
        )

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenizer and the tokens of the splits that ``stage`` needs."""
        check_vocabulary(self, self.tokenizer)
        super().setup(stage)

    def _held_out(self, count: int, split: Split) -> list[int]:
        """Return which of ``count`` rows a split has when ``val_fraction`` of them is set aside by the seed."""
        order = torch.randperm(count, generator=Generator().manual_seed(mix_seed(self.seed))).tolist()
        held = min(max(1, round(self.val_fraction * count)), count - 1)
        return sorted(order[held:] if split == "train" else order[:held])
