"""The lines of SuperGLUE's files: fields, labels, and the texts that a model reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]

YES_NO = ("false", "true")
"""Names of the classes where the labels are JSON booleans."""

QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
"""COPA's question -> how it is put to the model."""


@dataclass(frozen=True)
class Row:
    """One sample.

    Attributes:
        idx: What the benchmark calls it.
        target: Raw target, None where there is none.
        texts: Segments.
        choices: Alternatives, each of one or two segments; empty where the task has none.
    """

    idx: Any
    target: Any
    texts: tuple[str, ...] = ()
    choices: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Layout:
    """What the files of a task hold.

    Attributes:
        folder: Name of its folder.
        rows: Line of a file -> its samples; raises KeyError, TypeError or ValueError where it is not as it should be.
    """

    folder: str
    rows: Callable[[Line], Iterator[Row]]


def _field(line: Line, name: str, kind: type) -> Any:
    """Return a value of a line.

    Raises:
        ValueError: If it is absent or of another type.
    """
    if name not in line:
        raise ValueError(f"there must be a key '{name}', got {', '.join(map(repr, line)) or 'none'}")
    value = line[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "text", int: "an integer", bool: "true or false", dict: "an object", list: "a list"}
        raise ValueError(f"'{name}' must be {names[kind]}, got {value!r:.80}")
    return value


def _text(line: Line, name: str) -> str:
    text: str = _field(line, name, str)
    return text


def _yes_no(line: Line, name: str = "label") -> str | None:
    return YES_NO[_field(line, name, bool)] if name in line else None


def _name(line: Line) -> str | None:
    return _text(line, "label") if "label" in line else None


def _number(line: Line) -> int | None:
    if "label" not in line:
        return None
    value: int = _field(line, "label", int)
    return value


def _boolq(line: Line) -> Iterator[Row]:
    passage, question = _text(line, "passage"), _text(line, "question")
    if "title" in line:  # the first release: the benchmark has put the title before the passage
        yield Row(None, _yes_no(line, "answer"), (f"{_text(line, 'title')} -- {passage}", question))
    else:
        yield Row(_field(line, "idx", int), _yes_no(line), (passage, question))


def _premise_and_hypothesis(line: Line) -> Iterator[Row]:
    yield Row(_field(line, "idx", int), _name(line), (_text(line, "premise"), _text(line, "hypothesis")))


def _copa(line: Line) -> Iterator[Row]:
    asked = _text(line, "question")
    if asked not in QUESTIONS:
        raise ValueError(f"'question' must be one of {', '.join(QUESTIONS)}, got {asked!r}")
    premise = f"{_text(line, 'premise')} {QUESTIONS[asked]}"
    choices = tuple((premise, _text(line, name)) for name in ("choice1", "choice2"))
    yield Row(_field(line, "idx", int), _number(line), choices=choices)


def _multirc(line: Line) -> Iterator[Row]:
    passage = _field(line, "passage", dict)
    text, paragraph = _text(passage, "text"), _field(line, "idx", int)
    for question in _field(passage, "questions", list):
        asked, number = _text(question, "question"), _field(question, "idx", int)
        for answer in _field(question, "answers", list):
            idx = (paragraph, number, _field(answer, "idx", int))
            label = _number(answer)
            target = None if label is None else (label, number)
            yield Row(idx, target, (text, f"{asked} {_text(answer, 'text')}"))


def _wic(line: Line) -> Iterator[Row]:
    sentences = []
    for number in ("1", "2"):
        text = _text(line, f"sentence{number}")
        start, end = (_field(line, f"{side}{number}", int) for side in ("start", "end"))
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"'start{number}' and 'end{number}' must be a range of the {len(text)} characters of "
                f"'sentence{number}', got {start} and {end}"
            )
        sentences.append(marked(text, start, end, "*"))
    yield Row(_field(line, "idx", int), _yes_no(line), (f"{_text(line, 'word')}: {sentences[0]}", sentences[1]))


def _wsc(line: Line) -> Iterator[Row]:
    text, target = _text(line, "text"), _field(line, "target", dict)
    spans = []
    for number, mark in ((1, "*"), (2, "#")):
        index, words = _field(target, f"span{number}_index", int), _text(target, f"span{number}_text")
        spans.append((*place_of(text, index, words, number), mark))
    for start, end, mark in sorted(spans, reverse=True):  # from the back, so that places stay right
        text = marked(text, start, end, mark)
    yield Row(_field(line, "idx", int), _yes_no(line), (text,))


def marked(text: str, start: int, end: int, mark: str) -> str:
    """Return the text with a mark before and after some of its characters.

    Example:
        >>> marked("He should have been more skeptical.", 0, 2, "#")
        '# He # should have been more skeptical.'
    """
    return f"{text[:start]}{mark} {text[start:end]} {mark}{text[end:]}"


def place_of(text: str, index: int, span: str, number: int = 1) -> tuple[int, int]:
    """Return the characters of a span that is given by its first word and its text.

    Args:
        text: The text.
        index: Number of the span's first word; spaces part words.
        span: The span. Its text need not be that in ``text`` to the letter: some spans of the data set differ in case,
            spaces or a full stop, then as many words as it has are taken.
        number: Number of the span, for the error.

    Raises:
        ValueError: If there is no such word.

    Example:
        >>> place_of("Mark was close to Mr. Singer 's heels.", 4, "mr. singer")
        (18, 28)
    """
    words = list(re.finditer(r"\S+", text))
    length = len(span.split())
    if not (index >= 0 and length and index + length <= len(words)):
        raise ValueError(
            f"'span{number}_index' {index} and 'span{number}_text' {span!r} must lie in 'text' of {len(words)} words"
        )
    start = words[index].start()
    end = start + len(span)
    if text[start:end].lower() == span.lower() and not text[end : end + 1].isalnum():
        return start, end
    last = words[index + length - 1]
    return start, last.end() - (len(last[0]) - len(last[0].rstrip(".,;:!?")))


LAYOUTS = {
    "boolq": Layout("BoolQ", _boolq),
    "cb": Layout("CB", _premise_and_hypothesis),
    "copa": Layout("COPA", _copa),
    "multirc": Layout("MultiRC", _multirc),
    "rte": Layout("RTE", _premise_and_hypothesis),
    "wic": Layout("WiC", _wic),
    "wsc": Layout("WSC", _wsc),
}
"""Task -> what its files hold."""
