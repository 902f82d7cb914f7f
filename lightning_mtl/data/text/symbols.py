"""A tokenizer of whole words or single characters that needs no other package."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.text.tokenizers import load_tokenizer

Level = Literal["word", "character"]

_FILE = "symbols.json"
_WORDS = re.compile(r"\w+|[^\w\s]")
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def _split(text: str, level: Level) -> list[str]:
    return _WORDS.findall(text) if level == "word" else list(text)


class SymbolTokenizer:
    """Tokens are the words, or the characters, of a fixed vocabulary.

    Ids 0 to 3 are padding, begin, end and unknown; the vocabulary follows in its order. It is called like the
    tokenizers of ``transformers``, as far as the data modules and tasks of this package do.

    Args:
        vocabulary: The words or characters, each once.
        level: ``"word"`` splits at white space and sets punctuation marks apart, ``"character"`` splits between any
            two characters.

    Raises:
        ValueError: If the vocabulary holds a symbol twice, or one that cannot occur at this level.

    Example:
        >>> tokenizer = SymbolTokenizer.of(["sort 3 1 2"])
        >>> tokenizer.encode("sort 1 2 4")
        [1, 7, 4, 5, 3, 2]
        >>> tokenizer.decode([1, 7, 4, 5, 2, 0], skip_special_tokens=True)
        'sort 1 2'
    """

    pad_token_id = 0
    bos_token_id = 1
    eos_token_id = 2
    unk_token_id = 3
    is_fast = False
    padding_side = "right"

    def __init__(self, vocabulary: Sequence[str], level: Level = "word") -> None:
        if level not in ("word", "character"):
            raise ValueError(f"SymbolTokenizer: level must be 'word' or 'character', got {level!r}.")
        for symbol in vocabulary:
            if symbol in _SPECIAL or _split(symbol, level) != [symbol]:
                raise ValueError(
                    f"SymbolTokenizer: vocabulary must hold single {level}s that are none of {', '.join(_SPECIAL)}, "
                    f"got {symbol!r}."
                )
        self.vocabulary = tuple(vocabulary)
        self.level: Level = level
        self.symbols = (*_SPECIAL, *self.vocabulary)
        self.ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        if len(self.ids) < len(self.symbols):
            twice = next(symbol for symbol in self.vocabulary if self.vocabulary.count(symbol) > 1)
            raise ValueError(f"SymbolTokenizer: vocabulary must hold every symbol once, got {twice!r} twice.")

    @classmethod
    def of(cls, texts: Iterable[str], level: Level = "word") -> SymbolTokenizer:
        """Return the tokenizer of everything that occurs in these texts, in sorted order."""
        return cls(sorted({symbol for text in texts for symbol in _split(text, level)}), level)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.symbols)

    def __len__(self) -> int:
        """Return the number of tokens, special ones included."""
        return len(self.symbols)

    def tokenize(self, text: str) -> list[str]:
        """Return the symbols of a text."""
        return _split(text, self.level)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many tokens ``encode`` puts around one text, or around two."""
        return 3 if pair else 2

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """Return the tokens of one text or of two between begin and end."""
        ends = [self.eos_token_id]
        return [self.bos_token_id, *first, *ends, *(() if second is None else [*second, *ends])]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            text: The text.
            add_special_tokens: Whether begin and end stand around it.
        """
        ids = [self.ids.get(symbol, self.unk_token_id) for symbol in self.tokenize(text)]
        return self.build_inputs_with_special_tokens(ids) if add_special_tokens else ids

    def __call__(
        self, text: str | Sequence[str], text_pair: str | Sequence[str] | None = None, add_special_tokens: bool = True
    ) -> dict[str, Any]:
        """Return ``input_ids`` and ``attention_mask`` of a text, or of a list of texts, without padding.

        Args:
            text: A text, or several.
            text_pair: The second segment of each; it follows the end of the first.
            add_special_tokens: Whether begin and end stand around them.
        """
        single = isinstance(text, str)
        firsts = [text] if isinstance(text, str) else list(text)
        seconds: list[str | None] = [None] * len(firsts)
        if text_pair is not None:
            seconds = [text_pair] if isinstance(text_pair, str) else list(text_pair)
        ids = [self._joined(first, second, add_special_tokens) for first, second in zip(firsts, seconds, strict=True)]
        masks = [[1] * len(row) for row in ids]
        return {"input_ids": ids[0] if single else ids, "attention_mask": masks[0] if single else masks}

    def _joined(self, first: str, second: str | None, special: bool) -> list[int]:
        if second is None:
            return self.encode(first, special)
        ids = self.encode(first, False), self.encode(second, False)
        return self.build_inputs_with_special_tokens(*ids) if special else [*ids[0], *ids[1]]

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ids; words are joined by one space.

        Args:
            token_ids: The ids, a tensor or any sequence of integers.
            skip_special_tokens: Whether padding, begin and end are left out.

        Raises:
            ValueError: If an id is not in the vocabulary.
        """
        found = []
        for number in token_ids:
            if not 0 <= int(number) < len(self.symbols):
                raise ValueError(f"SymbolTokenizer: an id must be in 0..{len(self.symbols) - 1}, got {int(number)}.")
            if not (skip_special_tokens and number < self.unk_token_id):
                found.append(self.symbols[int(number)])
        return (" " if self.level == "word" else "").join(found)

    def batch_decode(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False) -> list[str]:
        """Return the text of every row; see :meth:`decode`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocabulary and level to ``symbols.json`` in a folder, which is made where it does not exist."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        content = {"level": self.level, "vocabulary": list(self.vocabulary)}
        (path / _FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> SymbolTokenizer:
        """Return the tokenizer that :meth:`save_pretrained` wrote.

        Raises:
            FileNotFoundError: If the folder holds none.
            DataFileError: If the file cannot be read.
        """
        path = Path(folder) / _FILE
        if not path.is_file():
            raise FileNotFoundError(f"SymbolTokenizer: there is no '{path}'; write one with save_pretrained.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataFileError.of("SymbolTokenizer", path, f"must be JSON, {error}", "write it anew") from error
        if not isinstance(content, Mapping) or not {"level", "vocabulary"} <= set(content):
            problem = "must be an object with 'level' and 'vocabulary'"
            raise DataFileError.of("SymbolTokenizer", path, problem, "write it with save_pretrained")
        return cls(content["vocabulary"], content["level"])


def find_tokenizer(owner: str, folder: str | os.PathLike[str]) -> Any:
    """Return the tokenizer in a folder: a :class:`SymbolTokenizer`, or one of transformers.

    Args:
        owner: Name of the class that asks, for the error.
        folder: The folder.

    Raises:
        DatasetNotFoundError: If it is not there, or holds no tokenizer.
    """
    path = Path(folder).expanduser()
    return SymbolTokenizer.from_pretrained(path) if (path / _FILE).is_file() else load_tokenizer(owner, path)
