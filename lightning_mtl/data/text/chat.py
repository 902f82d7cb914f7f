"""Conversations as rows of tokens for a causal language model: roles, loss masks, packing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Packing = Literal["padding", "pack", "concat"]
TokenizeMode = Literal["sft", "pretrain"]

ROLES = ("system", "human", "bot")
MARKERS = {role: f"<s>{role}\n" for role in ROLES}
"""What stands before a turn of every role."""

_SHAPE = (
    "must have 'chat_rounds', a list of objects with 'role' and 'content', or the texts 'prompt' and 'answer', or with "
    "tokenize_mode='pretrain' the text 'text'"
)


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation.

    Attributes:
        role: ``"system"``, ``"human"`` or ``"bot"``; empty for plain text.
        content: What was said.
    """

    role: str
    content: str


@dataclass(frozen=True)
class EncodedSample:
    """Tokens of a sample.

    Attributes:
        ids: Its tokens.
        trained: Which of them are to be predicted.
        truncated: Whether tokens were cut off.
    """

    ids: NDArray[np.int64]
    trained: NDArray[np.bool_]
    truncated: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a batch: inputs, the next token of each, and which sample each belongs to.

    Attributes:
        input_ids: Tokens.
        labels: The token after each, -100 where it is not trained on.
        segment_ids: Number of its sample in the row, from 1.
        position_ids: Place in its sample as far as it is in this row.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    segment_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]


def read_turns(row: Mapping[str, Any], mode: TokenizeMode) -> list[Turn]:
    """Return the turns of one object of a file.

    Raises:
        ValueError: If it has another form; the message is the problem alone.
    """
    if "chat_rounds" in row:
        rounds = row["chat_rounds"]
        if not isinstance(rounds, list) or not rounds:
            raise ValueError(f"chat_rounds must be a list of at least one turn, got {rounds!r}")
        return [_turn(number, given) for number, given in enumerate(rounds)]
    names = ("prompt", "answer") if "prompt" in row or "answer" in row else ("text",)
    if names == ("text",) and ("text" not in row or mode != "pretrain"):
        raise ValueError(f"{_SHAPE}, got the keys {sorted(row)}")
    for name in names:
        if not isinstance(row.get(name), str):
            raise ValueError(f"'{name}' must be a text, got {row.get(name)!r}")
    if names == ("text",):
        return [Turn("", row["text"])]
    return [Turn("human", row["prompt"]), Turn("bot", row["answer"])]


def _turn(number: int, given: Any) -> Turn:
    if not isinstance(given, Mapping) or not isinstance(given.get("content"), str):
        raise ValueError(f"chat_rounds[{number}] must be an object with 'role' and the text 'content', got {given!r}")
    if given.get("role") not in ROLES:
        raise ValueError(f"chat_rounds[{number}] must have a role of {ROLES}, got {given.get('role')!r}")
    return Turn(given["role"], given["content"])


def encode_turns(
    turns: Sequence[Turn],
    tokenizer: Any,
    end: int,
    mode: TokenizeMode = "sft",
    markers: Mapping[str, str] = MARKERS,
    longest: int | None = None,
) -> EncodedSample:
    """Return the tokens of a conversation.

    A turn is its marker and its content; a line break ends those of system and human, the end token those of the bot.
    Every piece is tokenized on its own. With ``mode="sft"`` the contents of the bot with their end tokens are trained
    on, in every round; with ``"pretrain"`` everything but the first token is.

    Args:
        turns: The conversation.
        tokenizer: Its ``encode(text, add_special_tokens=False)`` is used.
        end: Id of the end token.
        mode: What is trained on.
        markers: Role -> what stands before its turns.
        longest: Most tokens; the rest is cut off.

    Example:
        >>> from lightning_mtl.data.text import SymbolTokenizer
        >>> markers = {"system": "S", "human": "H", "bot": "B"}
        >>> tokenizer = SymbolTokenizer(["S", "H", "B", "a", "b"])
        >>> sample = encode_turns([Turn("human", "a"), Turn("bot", "b a")], tokenizer, 2, markers=markers)
        >>> sample.ids.tolist(), sample.trained.astype(int).tolist()
        ([5, 7, 6, 8, 7, 2], [0, 0, 0, 1, 1, 1])
    """
    ids: list[int] = []
    trained: list[bool] = []
    for turn in turns:
        pieces: list[tuple[list[int], bool]]
        if turn.role in ("system", "human"):
            pieces = [(_encode(tokenizer, markers[turn.role]), False), (_encode(tokenizer, turn.content + "\n"), False)]
        else:
            before = _encode(tokenizer, markers[turn.role]) if turn.role else []
            pieces = [(before, False), ([*_encode(tokenizer, turn.content), end], True)]
        for piece, answer in pieces:
            ids += piece
            trained += [answer or mode == "pretrain"] * len(piece)
    if trained:
        trained[0] = False  # nothing stands before it
    cut = longest is not None and len(ids) > longest
    return EncodedSample(np.array(ids[:longest], dtype=np.int64), np.array(trained[:longest], dtype=bool), cut)


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return list(ids)


def pack_samples(samples: Sequence[EncodedSample], length: int, packing: Packing) -> list[Row]:
    """Return samples as rows of at most ``length`` inputs.

    - ``"padding"``: one sample a row.
    - ``"pack"``: whole samples one after the other until the next does not fit.
    - ``"concat"``: all samples as one stream, cut every ``length`` tokens; every label occurs once.

    The first token of a sample is never a label, so that none is predicted from the sample before it.

    Args:
        samples: Samples of at most ``length + 1`` tokens, of any length for ``"concat"``.
        length: Most inputs of a row.
        packing: How they are put into rows.

    Example:
        >>> sample = EncodedSample(np.array([4, 5, 6]), np.array([False, False, True]))
        >>> (row,) = pack_samples([sample, sample], length=5, packing="pack")
        >>> row.input_ids.tolist(), row.labels.tolist(), row.segment_ids.tolist()
        ([4, 5, 6, 4, 5], [-100, 6, -100, -100, 6], [1, 1, 1, 2, 2])
    """
    if packing == "padding":
        return [_row([sample]) for sample in samples]
    if packing == "pack":
        rows: list[Row] = []
        waiting: list[EncodedSample] = []
        size = 0
        for sample in samples:
            if waiting and size + len(sample.ids) > length + 1:
                rows.append(_row(waiting))
                waiting, size = [], 0
            waiting.append(sample)
            size += len(sample.ids)
        return rows + ([_row(waiting)] if waiting else [])
    if not samples:
        return []
    ids = np.concatenate([sample.ids for sample in samples])
    trained = np.concatenate([sample.trained for sample in samples])
    owner = np.repeat(np.arange(len(samples)), [len(sample.ids) for sample in samples])
    starts = range(0, max(len(ids) - 1, 1), length)
    parts = [slice(start, start + length + 1) for start in starts]
    return [_shift(ids[part], trained[part], owner[part]) for part in parts]


def _row(samples: Sequence[EncodedSample]) -> Row:
    owner = np.repeat(np.arange(len(samples)), [len(sample.ids) for sample in samples])
    ids, trained = (np.concatenate([getattr(sample, name) for sample in samples]) for name in ("ids", "trained"))
    return _shift(ids, trained, owner)


def _shift(ids: NDArray[np.int64], trained: NDArray[np.bool_], owner: NDArray[np.int64]) -> Row:
    """Return inputs and labels of a piece of a stream; ``owner`` is the number of each token's sample."""
    counts = trained[1:] & (owner[1:] == owner[:-1])
    inputs, of = ids[:-1], owner[:-1]
    first = np.searchsorted(of, of, side="left")  # owners ascend
    return Row(
        inputs,
        np.where(counts, ids[1:], -100),
        of - (of[0] if len(of) else 0) + 1,
        np.arange(len(of)) - first,
    )
