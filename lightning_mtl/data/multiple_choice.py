"""Questions with lettered options, made from labels, and the letters read out of replies."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_mtl.data.samplers import mix_seed

LETTERS = "ABCD"
TAIL = "Answer with the letter of the right option only."

_LETTER = re.compile(rf"(?<![^\W_])[{LETTERS}](?![^\W_])")
_SMALL_LETTER = re.compile(rf"\W*([{LETTERS.lower()}])(?=[).:]|\W*$)")


@dataclass(frozen=True)
class MultipleChoice:
    """A question with up to four options of which one is right.

    Args:
        question: The instruction alone.
        options: The options, in the order of their letters.
        answer: Place of the right one.
    """

    question: str
    options: tuple[str, ...]
    answer: int

    @property
    def letter(self) -> str:
        """Letter of the right option."""
        return LETTERS[self.answer]

    @property
    def text(self) -> str:
        """The question as it is asked: instruction, one line an option, and what the reply should be."""
        lines = [f"{letter}: {option}" for letter, option in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.question, *lines, TAIL])


def to_multiple_choice(
    labels: str | Sequence[str],
    vocabulary: Sequence[str],
    instructions: Sequence[str],
    key: str,
    seed: int = 0,
    max_options: int = 4,
) -> MultipleChoice:
    """Turn the label of an item into a question with options.

    The right option is a label of the item, the others are drawn from the vocabulary without its other labels. What is
    drawn, instruction, options and their order, follows from the seed and the key alone, so that an item is asked in
    the same way in every epoch.

    Args:
        labels: Label of the item, or several that are all right, of which one is drawn.
        vocabulary: Labels from which wrong options are drawn.
        instructions: Instructions of which one is drawn.
        key: What identifies the item.
        seed: Seed of everything drawn.
        max_options: Largest number of options, from 2 to 4.

    Raises:
        ValueError: If there is no label or no instruction, no wrong option is left, or ``max_options`` is out of range.

    Example:
        >>> made = to_multiple_choice("cyst", ["cyst", "stone", "tumor"], ["Which disease is this?"], key="17")
        >>> sorted(made.options), made.options[made.answer]
        (['cyst', 'stone', 'tumor'], 'cyst')
        >>> print(MultipleChoice("Which?", ("cyst", "stone"), 1).text)
        Which?
        A: cyst
        B: stone
        Answer with the letter of the right option only.
    """
    if not 2 <= max_options <= len(LETTERS):
        raise ValueError(f"to_multiple_choice: max_options must be from 2 to {len(LETTERS)}, got {max_options}.")
    right = [labels] if isinstance(labels, str) else list(labels)
    if not right or not instructions:
        raise ValueError(
            f"to_multiple_choice: item {key!r} must have a label and an instruction, got {right} and "
            f"{list(instructions)}."
        )
    taken = {_folded(label) for label in right}
    wrong = list({_folded(label): label for label in vocabulary if _folded(label) not in taken}.values())
    if not wrong:
        raise ValueError(
            f"to_multiple_choice: vocabulary must hold a label that is wrong for item {key!r}, got {list(vocabulary)} "
            f"where {right} are right."
        )
    stream = Generator().manual_seed(mix_seed(seed, zlib.crc32(key.encode())))

    def drawn(count: int, most: int) -> list[int]:
        return torch.randperm(count, generator=stream)[:most].tolist()

    instruction = instructions[drawn(len(instructions), 1)[0]]
    answer = right[drawn(len(right), 1)[0]]
    options = [answer, *(wrong[place] for place in drawn(len(wrong), max_options - 1))]
    order = drawn(len(options), len(options))
    return MultipleChoice(instruction, tuple(options[place] for place in order), order.index(0))


def parse_answers(replies: Sequence[str], num_options: int | Sequence[int] = len(LETTERS)) -> tuple[Tensor, float]:
    """Read the chosen options out of replies in words.

    The first letter A to D that stands alone counts, or a small one with which the reply begins. A reply without one,
    or with the letter of no option, is not understood; it is wrong, and how often that happens belongs beside the
    accuracy.

    Args:
        replies: What a model said.
        num_options: Number of options, of all questions or of each.

    Returns:
        The places ``(n,)`` of the chosen options, -1 where the reply was not understood, and the share of these.

    Example:
        >>> parse_answers(["B", "(c) stone", "The answer is D.", "no idea"])
        (tensor([ 1,  2,  3, -1]), 0.25)
    """
    counts = [num_options] * len(replies) if isinstance(num_options, int) else list(num_options)
    places = []
    for reply, count in zip(replies, counts, strict=True):
        place = _place(reply)
        places.append(place if place < count else -1)
    unparsed = places.count(-1) / len(places) if places else 0.0
    return torch.tensor(places, dtype=torch.int64), unparsed


def _place(reply: str) -> int:
    if small := _SMALL_LETTER.match(reply):
        return LETTERS.lower().index(small.group(1))
    found = _LETTER.search(reply)
    return LETTERS.index(found.group()) if found else -1


def _folded(label: str) -> str:
    return label.strip().casefold()
