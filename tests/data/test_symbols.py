"""The tokenizer of words and characters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mtl.data import DataFileError
from lightning_mtl.data.text.symbols import SymbolTokenizer


@pytest.mark.parametrize(("level", "text"), [("word", "reverse 3 1 2"), ("character", "a b, c")])
def test_decoding_gives_the_text_back(level: str, text: str) -> None:
    tokenizer = SymbolTokenizer.of([text], level)  # type: ignore[arg-type]
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(torch.tensor([*ids, 0, 0]), skip_special_tokens=True) == text
    assert tokenizer.encode(text, add_special_tokens=False) == ids[1:-1]
    assert len(tokenizer) == tokenizer.vocab_size == 4 + len(tokenizer.vocabulary)


def test_words_are_set_apart_from_punctuation() -> None:
    tokenizer = SymbolTokenizer.of(["input: 3 1, output: ?"])
    assert tokenizer.tokenize("input: 3 1, output: ?") == ["input", ":", "3", "1", ",", "output", ":", "?"]
    assert tokenizer.decode(tokenizer.encode("3 1,", add_special_tokens=False)) == "3 1 ,"


def test_unknown_symbols_have_their_own_id() -> None:
    tokenizer = SymbolTokenizer(["a"])
    assert tokenizer.encode("a b") == [1, 4, tokenizer.unk_token_id, 2]
    assert tokenizer.decode([1, 3, 2], skip_special_tokens=True) == "<unk>"


def test_a_call_takes_one_text_several_or_pairs() -> None:
    tokenizer = SymbolTokenizer(["a", "b"])
    assert tokenizer("a b") == {"input_ids": [1, 4, 5, 2], "attention_mask": [1, 1, 1, 1]}
    assert tokenizer(["a", ""])["input_ids"] == [[1, 4, 2], [1, 2]]
    assert tokenizer("a", "b b")["input_ids"] == [1, 4, 2, 5, 5, 2]
    assert tokenizer(["a"], ["b"], add_special_tokens=False)["input_ids"] == [[4, 5]]
    assert len(tokenizer("", "")["input_ids"]) == tokenizer.num_special_tokens_to_add(pair=True)


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = SymbolTokenizer(["é", " "], "character")
    tokenizer.save_pretrained(tmp_path / "tokens")
    loaded = SymbolTokenizer.from_pretrained(tmp_path / "tokens")
    assert (loaded.symbols, loaded.level) == (tokenizer.symbols, "character")


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SymbolTokenizer: vocabulary must hold every symbol once, got 'a' twice"):
        SymbolTokenizer(["a", "b", "a"])
    with pytest.raises(ValueError, match=r"must hold single words that are none of .*, got 'a b'"):
        SymbolTokenizer(["a b"])
    with pytest.raises(ValueError, match=r"must hold single characters .*, got 'ab'"):
        SymbolTokenizer(["ab"], "character")
    with pytest.raises(ValueError, match="level must be 'word' or 'character', got 'byte'"):
        SymbolTokenizer([], "byte")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"an id must be in 0\.\.4, got 5"):
        SymbolTokenizer(["a"]).decode([5])
    with pytest.raises(FileNotFoundError, match=r"there is no '.*symbols\.json'; write one with save_pretrained"):
        SymbolTokenizer.from_pretrained(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "symbols.json").write_text(content)
        with pytest.raises(DataFileError, match=r"SymbolTokenizer: '.*symbols\.json': must be"):
            SymbolTokenizer.from_pretrained(tmp_path)
