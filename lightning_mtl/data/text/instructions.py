"""Text-to-text mixtures of tasks that differ in their instruction alone."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Generator, Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.text.base import TextDataModule, TextOptions
from lightning_mtl.data.text.cache import Column, Ragged, Tokens
from lightning_mtl.data.text.collate import TextCollate
from lightning_mtl.data.text.dataset import TextDataset
from lightning_mtl.data.text.encoding import Encoding
from lightning_mtl.data.text.records import IGNORE, Form, Generation, TextRecords
from lightning_mtl.data.text.templates import InstructionMode, InstructionTemplate

Architecture = Literal["seq2seq", "causal"]


@dataclass(frozen=True)
class Instruction(Generation):
    """A text to write in answer to a text that stands in the frame of an instruction.

    Attributes:
        before: What stands before every text.
        after: What stands after every text.
        model: Whether an encoder-decoder reads and writes, or a causal model goes on where the prompt ends.
    """

    before: str = ""
    after: str = ""
    model: Architecture = "seq2seq"


class InstructionEncoding(Encoding):
    """Turns texts in the frame of an instruction into tokens.

    A row that is too long loses the end of its *text*; the frame stays whole. For an encoder-decoder the columns are
    ``input_ids``, ``decoder_input_ids`` and the target; for a causal model ``input_ids`` (prompt and answer),
    ``prompt_length`` and the target, moved by one and -100 over the prompt. ``target.TASK.cut`` is the number of tokens
    that a text lost.
    """

    def encode(self, records: TextRecords, forms: Mapping[str, Form]) -> Tokens:
        """Return the columns of these rows; there is one task."""
        ((task, form),) = forms.items()
        if not isinstance(form, Instruction):
            raise TypeError(f"{self.owner}: the form of task {task!r} must be Instruction, got {type(form).__name__}.")
        first, last = self._around()
        if form.model == "causal":
            last = []
        texts = [row[0] for row in records.texts]
        prompts, cuts = self._prompts(task, form, texts, self.max_length - len(first) - len(last))
        prompts = [[*first, *prompt, *last] for prompt in prompts]
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise self._error(records, row, "a row must have at least one token, got an empty text")
        answers = self._answers(records, task, form)
        columns: dict[str, Column]
        if form.model == "causal":
            columns = {
                "input_ids": Ragged.of([*p, *(a or [])[:-1]] for p, a in zip(prompts, answers, strict=True)),
                "prompt_length": np.array([len(prompt) for prompt in prompts], dtype=np.int64),
                f"target.{task}": Ragged.of(
                    [IGNORE] * len(p) if a is None else [*[IGNORE] * (len(p) - 1), *a]
                    for p, a in zip(prompts, answers, strict=True)
                ),
            }
        else:
            start = self._special(form.start)
            columns = {
                "input_ids": Ragged.of(prompts),
                "decoder_input_ids": Ragged.of([start, *(answer or [])[:-1]] for answer in answers),
                f"target.{task}": Ragged.of([IGNORE] if answer is None else answer for answer in answers),
            }
        return Tokens({**columns, f"target.{task}.cut": np.array(cuts, dtype=np.int64)})

    @property
    def _fast_tokenizer(self) -> bool:
        return getattr(self.tokenizer, "backend_tokenizer", None) is not None

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts without special tokens."""
        if texts and self._fast_tokenizer:
            found = self.tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
            return [list(ids) for ids in found["input_ids"]]
        return [list(self.tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def _around(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before a text and those after it."""
        probe = "a"
        inner = list(self.tokenizer.encode(probe, add_special_tokens=False))
        whole = list(self.tokenizer.encode(probe, add_special_tokens=True))
        for start in range(len(whole) - len(inner) + 1):
            if whole[start : start + len(inner)] == inner:
                return whole[:start], whole[start + len(inner) :]
        raise ValueError(f"{self.owner}: the special tokens of {type(self.tokenizer).__name__} cannot be told apart.")

    def _prompts(
        self, task: str, form: Instruction, texts: Sequence[str], room: int
    ) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of every prompt, and by how many its text was cut."""
        before, after = self._ids([form.before, form.after]) if form.before or form.after else ([], [])
        if len(before) + len(after) >= room:
            raise ValueError(
                f"{self.owner}: max_source_len must leave room for the text, but the instruction of task {task!r} "
                f"takes {len(before) + len(after)} of {room} tokens; raise max_source_len, lower max_examples, or "
                "leave out the explanations."
            )
        whole = [form.before + text + form.after for text in texts]
        prompts = self._ids(whole)
        cuts = [max(0, len(prompt) - room) for prompt in prompts]
        for row, cut in enumerate(cuts):
            if cut and self._fast_tokenizer:
                prompts[row] = self._without(whole[row], len(form.before), len(whole[row]) - len(form.after), cut)
            elif cut:
                (text,) = self._ids([texts[row]])
                prompts[row] = [*before, *text[: room - len(before) - len(after)], *after]
        return prompts, cuts

    def _without(self, prompt: str, start: int, end: int, cut: int) -> list[int]:
        """Return the tokens of a prompt without the last ones of its text, which is between two characters."""
        found = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, places = list(found["input_ids"]), found["offset_mapping"]
        last = max((number for number, (_, until) in enumerate(places) if until <= end), default=-1) + 1
        first = sum(until <= start for _, until in places[:last])
        kept = max(first, last - cut)
        return ids[:kept] + ids[last:]

    def _answers(self, records: TextRecords, task: str, form: Instruction) -> list[list[int] | None]:
        """Return the tokens of every answer and the end token, None where a row has no answer."""
        raw = records.targets_of(task)
        if raw is None:
            return [None] * len(records)
        end = self._special("eos", "sep")
        texts = [form.encode(target) for target in raw]
        written = iter(self._ids([text for text in texts if text is not None]))
        return [None if text is None else [*next(written)[: form.max_length - 1], end] for text in texts]


class InstructionCollate(TextCollate):
    """Joins samples of :class:`InstructionMixture` into a batch."""

    def _pad(self, rows: list[Mapping[str, NDArray[Any]]]) -> dict[str, Tensor]:
        joined = super()._pad([{k: v for k, v in row.items() if k != "prompt_length"} for row in rows])
        if "prompt_length" in rows[0]:
            joined["prompt_length"] = torch.tensor([int(row["prompt_length"]) for row in rows])
        return joined

    def _target(self, form: Form, values: list[Any], length: int) -> Tensor:
        target = super()._target(form, values, length)
        width = length if isinstance(form, Instruction) and form.model == "causal" else target.shape[1]
        return F.pad(target, (0, width - target.shape[1]), value=IGNORE)


class InstructionOptions(TextOptions, total=False):
    """Options that all text-to-text mixtures have in common, besides those of text.

    Attributes:
        mode: What stands before a text: ``"full"`` (default) definition and examples, ``"prompt"`` one sentence,
            ``"task_name"`` the name of the task, ``"none"`` nothing.
        model: Whether batches are for an encoder-decoder, ``"seq2seq"`` (default), or a ``"causal"`` language model.
        max_source_len: Most tokens of instruction and text; 1024 by default. Longer texts are cut at their end, the
            instruction and what follows the text never. Replaces ``max_length`` and ``truncation``.
        max_target_len: Most tokens of an answer, its end included; 128 by default.
        few_shot: Training rows of every task, drawn by the seed; None (default) takes all.
        decoder_start: Special token with which the decoder begins: ``"pad"`` (default) for T5, ``"eos"`` for BART.
    """

    mode: InstructionMode
    model: Architecture
    max_source_len: int
    max_target_len: int
    few_shot: int | None
    decoder_start: Literal["pad", "bos", "eos", "cls"]


class InstructionMixture(TextDataModule):
    """Base of text-to-text mixtures: every task is a text to write, told apart by its instruction alone.

    Subclasses implement :meth:`templates` and :meth:`rows`.

    Args:
        options: See :class:`InstructionOptions`, :class:`~lightning_mtl.data.text.TextOptions` and
            :class:`~lightning_mtl.data.base.LoaderOptions`. ``mixed`` is True by default, and mixed batches are then
            not of similar length (``bucket_batches`` is 1), because that brings rows of one task together.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, **options: Unpack[InstructionOptions]) -> None:
        name = type(self).__name__
        for taken in ("max_length", "truncation"):
            if taken in options:
                raise ValueError(f"{name}: {taken} must be left out; set max_source_len, which cuts texts alone.")
        mode, model = options.pop("mode", "full"), options.pop("model", "seq2seq")
        source, target = options.pop("max_source_len", 1024), options.pop("max_target_len", 128)
        few_shot, start = options.pop("few_shot", None), options.pop("decoder_start", "pad")
        options.setdefault("mixed", True)
        if options["mixed"]:  # buckets of equal length would be buckets of equal instruction
            options.setdefault("bucket_batches", 1)
        super().__init__(max_length=source, **options)  # type: ignore[misc]
        choices: dict[str, tuple[Any, tuple[str, ...]]] = {
            "mode": (mode, ("none", "task_name", "prompt", "full")),
            "model": (model, ("seq2seq", "causal")),
            "decoder_start": (start, ("pad", "bos", "eos", "cls")),
        }
        for argument, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{name}: {argument} must be one of {known}, got {value!r}.")
        for argument, number, least in (("max_target_len", target, 2), ("few_shot", few_shot, 1)):
            if number is not None and number < least:
                raise ValueError(f"{name}: {argument} must be at least {least}, got {number}.")
        self.mode: InstructionMode = mode
        self.model: Architecture = model
        self.max_target_len = target
        self.few_shot = few_shot
        self.decoder_start = start
        self._forms: dict[str, Form] | None = None

    @abstractmethod
    def templates(self) -> Mapping[str, InstructionTemplate]:
        """Return task -> what the model is told about it."""

    @abstractmethod
    def rows(self, task: str, split: Split) -> TextRecords | None:
        """Return the rows of a task in a split, texts without instruction, None where it has none."""

    def forms(self) -> Mapping[str, Form]:
        """Return task -> form of its target, with the frame of its instruction."""
        if self._forms is None:
            frames = {task: template.frame(self.mode, task) for task, template in self.templates().items()}
            self._forms = {
                task: Instruction(self.max_target_len, self.decoder_start, before, after, self.model)
                for task, (before, after) in frames.items()
            }
        return self._forms

    def read(self, task: str, split: Split) -> TextRecords | None:
        """Return the rows of a task in a split; of the training rows only ``few_shot``, where that is given."""
        records = self.rows(task, split)
        if records is None or split != "train" or self.few_shot is None:
            return records
        stream = Generator().manual_seed(mix_seed(self.seed, zlib.crc32(task.encode())))
        chosen = torch.randperm(len(records), generator=stream)[: self.few_shot]
        return records.take(sorted(chosen.tolist()))

    def encoding(self) -> InstructionEncoding:
        """Return what turns rows into tokens."""
        return InstructionEncoding(type(self).__name__, self.tokenizer, self.max_length, self.truncation)

    def collator(self) -> InstructionCollate:
        """Return what joins samples into a batch."""
        return InstructionCollate(self.pad_token_id, self.forms(), self.pad_to_multiple_of)

    def make_dataset(self, split: Split) -> TextDataset:
        """Return the rows of a split, tokenized; warns of the texts that were cut."""
        dataset = super().make_dataset(split)
        shares = {task: share for task, share in cut_shares(dataset).items() if share}
        if shares:
            listed = ", ".join(f"{task} {share:.1%}" for task, share in shares.items())
            rank_zero_warn(
                f"{type(self).__name__}: split '{split}': max_source_len={self.max_length} cuts the end of texts, "
                f"share by task: {listed}."
            )
        return dataset

    def _training_texts(self) -> list[str]:
        frames = [text for form in self.forms().values() if isinstance(form, Instruction) for text in _frame(form)]
        return [*super()._training_texts(), *frames]


def cut_shares(dataset: TextDataset) -> dict[str, float]:
    """Return task -> share of the rows whose text was cut to ``max_source_len``."""
    return {
        task: float((np.asarray(source.tokens[f"target.{task}.cut"]) > 0).mean())
        for task, source in dataset.sources.items()
    }


def _frame(form: Instruction) -> tuple[str, str]:
    return form.before, form.after
