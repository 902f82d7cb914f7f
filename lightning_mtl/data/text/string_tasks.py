"""Six tasks on the same strings of digits: only an instruction tells them apart."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator
from typing_extensions import Unpack

from lightning_mtl.data.base import Split
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.text.instructions import InstructionMixture, InstructionOptions
from lightning_mtl.data.text.records import TextRecords
from lightning_mtl.data.text.symbols import SymbolTokenizer
from lightning_mtl.data.text.templates import InstructionExample, InstructionTemplate

Digits = list[int]

_SOLUTIONS: dict[str, Callable[[Digits], Digits]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[::-1],
    "sort": sorted,
    "increment": lambda digits: [(digit + 1) % 10 for digit in digits],
    "rotate": lambda digits: digits[1:] + digits[:1],
    "swap": lambda digits: [digits[-1], *digits[1:-1], digits[0]],
}
_PHRASES: dict[str, str] = {
    "copy": "output the input",
    "reverse": "output the input in reverse order",
    "sort": "output the input in sorted order",
    "increment": "output the input with one added",
    "rotate": "output the input with first moved last",
    "swap": "output first and last swapped",
}
_SPLITS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}

STRING_TASKS = tuple(_SOLUTIONS)
"""Names of the tasks."""


class StringTasksDataModule(InstructionMixture):
    """Copy, reverse, sort, increment, rotate to the left, or swap the ends of strings of digits, in words.

    All tasks draw their strings alike, so that without an instruction the answer is not determined. The phrases of the
    instructions have seven words at most and share most of them. Strings of training and evaluation never meet.
    Generated, needs no files; the tokenizer is a :class:`SymbolTokenizer` of words and digits unless another is given.

    Args:
        tasks: Names of the tasks, of ``copy``, ``reverse``, ``sort``, ``increment``, ``rotate``, ``swap``.
        length: Number of digits.
        num_train: Training strings of every task, or task -> number.
        num_val: Validation strings of every task.
        num_test: Test strings of every task, which are the prediction strings too.
        options: See :class:`~lightning_mtl.data.text.InstructionOptions`,
            :class:`~lightning_mtl.data.text.TextOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`. ``mode``
            is ``"prompt"``, ``model`` ``"causal"``, ``batch_size`` 64 and ``cache`` False by default.

    Shape:
        As for :class:`InstructionMixtureDataModule`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = StringTasksDataModule(tasks=["reverse"], num_train=8, num_val=2, num_test=2, batch_size=2)
        >>> data.setup("fit")
        >>> inputs, targets = next(iter(data.val_dataloader()))
        >>> data.tokenizer.decode(inputs["input_ids"][0, : inputs["prompt_length"][0]])
        '<bos> Instruction : output the input in reverse order ; Instance : input : 1 0 0 3 1 , output : ?'
        >>> data.tokenizer.decode(targets["reverse"][0, -6:])
        '1 3 0 0 1 <eos>'
    """

    def __init__(
        self,
        tasks: Sequence[str] = STRING_TASKS,
        length: int = 5,
        num_train: int | dict[str, int] = 1000,
        num_val: int = 200,
        num_test: int = 200,
        **options: Unpack[InstructionOptions],
    ) -> None:
        options.setdefault("mode", "prompt")
        options.setdefault("model", "causal")
        options.setdefault("batch_size", 64)
        options.setdefault("num_workers", 0)
        options.setdefault("cache", False)
        options.setdefault("tokenizer", string_tokenizer())
        super().__init__(**options)
        name = type(self).__name__
        if not tasks or not set(tasks) <= set(STRING_TASKS) or len(set(tasks)) < len(tasks):
            raise ValueError(f"{name}: tasks must be of {', '.join(STRING_TASKS)}, each once, got {list(tasks)}.")
        if length < 2:
            raise ValueError(f"{name}: length must be at least 2, got {length}.")
        sizes = num_train if isinstance(num_train, dict) else dict.fromkeys(tasks, num_train)
        if set(sizes) != set(tasks):
            raise ValueError(f"{name}: num_train must name the tasks {list(tasks)}, got {list(sizes)}.")
        for argument, number in (("num_train", min(sizes.values())), ("num_val", num_val), ("num_test", num_test)):
            if number < 1:
                raise ValueError(f"{name}: {argument} must be at least 1, got {number}.")
        self.tasks = tuple(tasks)
        self.length = length
        self.sizes: dict[Split, dict[str, int]] = {
            "train": sizes,
            "val": dict.fromkeys(tasks, num_val),
            "test": dict.fromkeys(tasks, num_test),
            "predict": dict.fromkeys(tasks, num_test),
        }

    def templates(self) -> Mapping[str, InstructionTemplate]:
        """Return task -> its instruction; the definition is the prompt."""
        return {task: string_template(task) for task in self.tasks}

    def rows(self, task: str, split: Split) -> TextRecords:
        """Return strings and answers of a task."""
        count = self.sizes[split][task]
        stream = Generator().manual_seed(mix_seed(self.seed, _SPLITS[split], zlib.crc32(task.encode())))
        found: list[Digits] = []
        while len(found) < count:
            drawn = torch.randint(10, (2 * count, self.length), generator=stream).tolist()
            found += [digits for digits in drawn if _split_of(digits) == _SPLITS[split]]
        found = found[:count]
        return TextRecords(
            path=Path(f"generated/{task}/{split}"),
            lines=range(1, count + 1),
            texts=[(_written(digits),) for digits in found],
            targets=[_written(_SOLUTIONS[task](digits)) for digits in found],
        )


def string_template(task: str) -> InstructionTemplate:
    """Return the instruction of one of the tasks, with one worked example.

    Example:
        >>> string_template("sort").prompt
        'output the input in sorted order'
    """
    digits = [3, 1, 4, 1, 5]
    example = InstructionExample(_written(digits), _written(_SOLUTIONS[task](digits)))
    return InstructionTemplate(_PHRASES[task], (example,), _PHRASES[task])


def string_tokenizer() -> SymbolTokenizer:
    """Return the tokenizer of all words of these tasks."""
    digits = [str(digit) for digit in range(10)]
    templates = [string_template(task).render("", mode) for task in STRING_TASKS for mode in ("prompt", "full")]
    return SymbolTokenizer.of([*digits, *templates, *STRING_TASKS])


def _split_of(digits: Digits) -> int:
    """Return the split that a string belongs to: eight tenths of all strings are for training."""
    place = zlib.crc32(bytes(digits)) % 10
    return max(0, place - 7)


def _written(digits: Digits) -> str:
    return " ".join(map(str, digits))
