"""From rows of text to tokens and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.text.cache import Column, Ragged, Tokens
from lightning_mtl.data.text.records import IGNORE, Answers, Form, Generation, Inputs, Numbers, Span, Tags, TextRecords

Truncation = Literal["longest_first", "only_first", "only_second", "error"]

_CHUNK = 2000


@dataclass
class _Encoded:
    """Tokens of rows, and where they come from.

    Attributes:
        ids: Token ids of every row.
        types: Segment of every token, where the tokenizer gives them.
        source: Row -> for every token ``(segment, word or first character, end character)``, where asked for.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    source: list[list[tuple[int, int, int] | None]] | None = None


@dataclass(frozen=True)
class Encoding:
    """Turns the rows of a file into tokens and targets.

    Args:
        owner: Name of the data module, for errors.
        tokenizer: The tokenizer.
        max_length: Most tokens of a row (of an alternative), special ones included.
        truncation: Which segment of longer rows is cut; ``error`` raises instead.
    """

    owner: str
    tokenizer: Any
    max_length: int
    truncation: Truncation

    def encode(self, records: TextRecords, forms: Mapping[str, Form]) -> Tokens:
        """Return the columns of these rows.

        ``input_ids`` and, if the tokenizer gives them, ``token_type_ids``; for rows with alternatives ``0.input_ids``,
        ``1.input_ids`` and so on; ``decoder_input_ids`` for texts to write; ``target.TASK`` for every task.

        Args:
            records: The rows.
            forms: Task -> form of its target; all of them have the same form of input.

        Raises:
            DataFileError: If a row does not fit; names file and line.
        """
        kind = next(iter(forms.values())).inputs
        columns: dict[str, Column] = {}
        found: _Encoded | None = None
        if kind in ("choices", "pair"):
            for number, segments in enumerate(self._alternatives(records, forms)):
                columns |= self._columns(self._tokens(records, segments, "texts"), f"{number}.")
        else:
            found = self._tokens(records, records.texts, kind)
            columns |= self._columns(found, "")
        for task, form in forms.items():
            columns |= self._targets(records, task, form, found)
        return Tokens(columns)

    def _alternatives(self, records: TextRecords, forms: Mapping[str, Form]) -> list[list[tuple[str, ...]]]:
        form = next(iter(forms.values()))
        num = getattr(form, "num", 2)
        for row, choices in enumerate(records.choices or []):
            if len(choices) != num:
                raise self._error(records, row, f"a row must have {num} alternatives, got {len(choices)}")
        if records.choices is None:
            raise self._error(records, 0, "rows must have alternatives (choices)")
        return [[choices[number] for choices in records.choices] for number in range(num)]

    # ------------------------------------------------------------------ tokens
    def _tokens(self, records: TextRecords, segments: Sequence[tuple[str, ...]], kind: Inputs) -> _Encoded:
        pairs = kind != "words" and len(segments[0]) == 2
        for row, texts in enumerate(segments):
            if kind == "words":
                if not texts:
                    raise self._error(records, row, "a row must have at least one word")
            elif len(texts) not in (1, 2) or (len(texts) == 2) != pairs:
                raise self._error(
                    records, row, f"all rows must have the same number of segments, one or two, got {len(texts)}"
                )
        fast = getattr(self.tokenizer, "backend_tokenizer", None) is not None
        encode: Callable[..., _Encoded] = self._fast if fast else self._plain
        whole = _Encoded([], None, None)
        for start in range(0, len(segments), _CHUNK):
            part = encode(records, start, segments[start : start + _CHUNK], kind)
            whole.ids += part.ids
            if part.types is not None:
                whole.types = (whole.types or []) + part.types
            if part.source is not None:
                whole.source = (whole.source or []) + part.source
        for row, ids in enumerate(whole.ids):
            if len(ids) > self.max_length:
                raise self._too_long(records, row, len(ids))
            if not ids:
                raise self._error(records, row, "a row must have at least one token, got an empty text")
        return whole

    def _fast(self, records: TextRecords, start: int, segments: Sequence[tuple[str, ...]], kind: Inputs) -> _Encoded:
        texts: list[Any] = [list(row) if kind == "words" else row[0] for row in segments]
        others = [row[1] for row in segments] if kind != "words" and len(segments[0]) == 2 else None
        options: dict[str, Any] = {
            "truncation": False if self.truncation == "error" else self._strategy(others is not None),
            "max_length": None if self.truncation == "error" else self.max_length,
            "is_split_into_words": kind == "words",
            "return_offsets_mapping": kind == "question",
            "return_attention_mask": False,
            "verbose": False,
        }
        try:
            batch = self.tokenizer(texts, others, **options)
        except Exception as error:  # tokenizers raises plain Exceptions
            if "Truncation" not in str(error):
                raise
            for row, text in enumerate(texts):
                other = None if others is None else others[row]
                try:
                    self.tokenizer(text, other, **options)
                except Exception:
                    free = {**options, "truncation": False, "max_length": None}
                    length = len(self.tokenizer(text, other, **free)["input_ids"])
                    raise self._too_long(records, start + row, length) from error
            raise
        source: list[list[tuple[int, int, int] | None]] | None = None
        if kind == "words":
            source = [
                [None if word is None else (0, word, 0) for word in batch.word_ids(row)] for row in range(len(texts))
            ]
        elif kind == "question":
            source = [
                [
                    None if segment is None else (segment, *place)
                    for segment, place in zip(batch.sequence_ids(row), batch["offset_mapping"][row], strict=True)
                ]
                for row in range(len(texts))
            ]
        return _Encoded(batch["input_ids"], batch.get("token_type_ids"), source)

    def _strategy(self, pairs: bool) -> str:
        return "only_first" if self.truncation == "longest_first" and not pairs else self.truncation

    def _plain(self, records: TextRecords, start: int, segments: Sequence[tuple[str, ...]], kind: Inputs) -> _Encoded:
        """Encode with a tokenizer that is not from ``tokenizers``, row by row."""
        if kind == "question":
            raise TypeError(
                f"{self.owner}: tokenizer must be a transformers.PreTrainedTokenizerFast for spans, whose characters "
                f"it knows, got {type(self.tokenizer).__name__}."
            )
        rows: list[list[int]] = []
        source: list[list[tuple[int, int, int] | None]] = []
        for row, texts in enumerate(segments):
            pieces = [list(self.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
            words = [(0, word, 0) for word, piece in enumerate(pieces) for _ in piece]
            if kind == "words":
                pieces = [[token for piece in pieces for token in piece]]
            pair = len(pieces) == 2
            excess = sum(map(len, pieces)) + self.tokenizer.num_special_tokens_to_add(pair) - self.max_length
            if self.truncation != "error":
                for _ in range(max(0, excess)):
                    longer = int(pair and len(pieces[1]) >= len(pieces[0]))
                    cut = {"only_first": 0, "only_second": 1}.get(self.truncation, longer) if pair else 0
                    if not pieces[cut]:
                        raise self._too_long(records, start + row, excess + self.max_length)
                    pieces[cut].pop()
            ids = list(self.tokenizer.build_inputs_with_special_tokens(*pieces))
            rows.append(ids)
            if kind == "words":
                before = _place_of(pieces[0], ids)
                inside: list[tuple[int, int, int] | None] = [None] * len(ids)
                inside[before : before + len(pieces[0])] = words[: len(pieces[0])]
                source.append(inside)
        return _Encoded(rows, None, source or None)

    def _columns(self, found: _Encoded, prefix: str) -> dict[str, Column]:
        columns: dict[str, Column] = {f"{prefix}input_ids": Ragged.of(found.ids)}
        if found.types is not None:
            columns[f"{prefix}token_type_ids"] = Ragged.of(found.types)
        return columns

    # ------------------------------------------------------------------ targets
    def _targets(self, records: TextRecords, task: str, form: Form, found: _Encoded | None) -> dict[str, Column]:
        raw = records.targets_of(task)
        values: list[Any] = []
        for row in range(len(records)):
            try:
                values.append(form.encode(None if raw is None else raw[row]))
            except ValueError as error:
                raise self._error(records, row, str(error), "correct the file or the form of the task") from error
        name = f"target.{task}"
        if isinstance(form, Generation):
            return self._written(records, name, form, values)
        if isinstance(form, Tags) and found is not None and found.source is not None:
            rows = [self._aligned(records, row, value, found.source[row]) for row, value in enumerate(values)]
            return {name: Ragged.of(rows)}
        if isinstance(form, Span) and found is not None and found.source is not None:
            spans = [_tokens_of(value, records.texts[row][-1], found.source[row]) for row, value in enumerate(values)]
            return {name: Ragged.of(spans)}
        dtype = np.dtype(np.float32 if np.isnan(form.ignore) else np.int64)
        if isinstance(form, Answers | Numbers):
            return {name: Ragged.of(values, dtype)}
        if raw is None and form.inputs == "pair":
            values = list(range(len(records)))
        return {name: np.asarray(values, dtype=dtype)}

    def _aligned(
        self, records: TextRecords, row: int, labels: list[int] | None, source: list[tuple[int, int, int] | None]
    ) -> list[int]:
        """Return a label for every token: that of the word at its first piece, -100 elsewhere."""
        if labels is None:
            return [IGNORE] * len(source)
        if len(labels) != len(records.texts[row]):
            raise self._error(
                records, row, f"there must be a label for each of {len(records.texts[row])} words, got {len(labels)}"
            )
        aligned, last = [], -1
        for place in source:
            first = place is not None and place[1] != last
            aligned.append(labels[place[1]] if place is not None and first else IGNORE)
            last = last if place is None else place[1]
        return aligned

    def _written(self, records: TextRecords, name: str, form: Generation, texts: list[str | None]) -> dict[str, Column]:
        end = self._special("eos", "sep")
        start = self._special(form.start)
        labels: list[list[int]] = []
        for row, text in enumerate(texts):
            if text is None:
                labels.append([IGNORE])
                continue
            ids = [*self.tokenizer.encode(text, add_special_tokens=False), end]
            if len(ids) > form.max_length and self.truncation == "error":
                raise self._too_long(records, row, len(ids), form.max_length, "the text to write")
            labels.append(ids[: form.max_length])
        shifted = [[start, *(max(label, 0) for label in row[:-1])] for row in labels]
        return {name: Ragged.of(labels), "decoder_input_ids": Ragged.of(shifted)}

    def _special(self, *names: str) -> int:
        for name in names:
            value = getattr(self.tokenizer, f"{name}_token_id", None)
            if value is not None:
                return int(value)
        raise ValueError(f"{self.owner}: tokenizer must have a token {' or '.join(names)} for texts to write.")

    # ------------------------------------------------------------------ errors
    def _error(self, records: TextRecords, row: int, problem: str, remedy: str = "correct the file") -> DataFileError:
        return DataFileError.of(self.owner, f"{records.path}:{records.lines[row]}", problem, remedy)

    def _too_long(
        self, records: TextRecords, row: int, length: int, limit: int | None = None, what: str = "a row"
    ) -> DataFileError:
        return self._error(
            records,
            row,
            f"{what} must have at most {self.max_length if limit is None else limit} tokens, got {length}",
            "raise max_length, or choose a truncation that cuts it",
        )


def _place_of(inner: list[int], ids: list[int]) -> int:
    """Return where the tokens of a text begin among those with the special tokens around."""
    return next(start for start in range(len(ids)) if ids[start : start + len(inner)] == inner)


def _tokens_of(span: tuple[int, int] | None, text: str, source: list[tuple[int, int, int] | None]) -> list[int]:
    """Return first and last token of a passage of the last segment, -100 where it is not there as a whole."""
    if span is None:
        return [IGNORE, IGNORE]
    start, end = span
    start += len(text[start:end]) - len(text[start:end].lstrip())  # spaces have no tokens
    end = start + len(text[start:end].rstrip())
    segment = max((place[0] for place in source if place is not None), default=0)
    inside = [
        (token, place)
        for token, place in enumerate(source)
        if place is not None and place[0] == segment and place[1] < end and place[2] > start
    ]
    if not inside or inside[0][1][1] > start or inside[-1][1][2] < end:
        return [IGNORE, IGNORE]
    return [inside[0][0], inside[-1][0]]
