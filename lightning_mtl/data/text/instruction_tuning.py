"""Instruction tuning of a causal language model on the conversations of several tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import Dataset
from typing_extensions import Unpack

from lightning_mtl.data.base import LoaderOptions, Sample, Split, labelled_rows, resolve_root
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError, EmptySplitError
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.samplers import TaskSampler, TaskSampling
from lightning_mtl.data.text.chat import (
    MARKERS,
    ROLES,
    EncodedSample,
    Packing,
    Row,
    TokenizeMode,
    encode_turns,
    pack_samples,
    read_turns,
)
from lightning_mtl.data.text.collate import pad_rows
from lightning_mtl.data.text.files import read_table
from lightning_mtl.data.text.tokenized import TokenizedDataModule
from lightning_mtl.data.text.tokenizers import TokenizerLike

_LAYOUT = "It must hold one folder for each task with .jsonl files in it: <root>/<task>/*.jsonl."


@dataclass(frozen=True)
class TokenCounts:
    """What a task has in a split.

    Attributes:
        samples: Samples that are trained on.
        dropped: Samples that were left out because no token of an answer was left of them.
        truncated: Samples that were cut to the longest row.
        rows: Rows that the samples were put into.
        tokens: Inputs in these rows, without padding.
        trained: Labels in these rows.
    """

    samples: int
    dropped: int
    truncated: int
    rows: int
    tokens: int
    trained: int


class InstructionDataset(Dataset[Sample]):
    """Rows of tokens of several tasks, one task after the other.

    A sample is ``(inputs, {task: labels})`` with NumPy arrays that are not padded; it answers to a list of positions
    with a list of samples.

    Args:
        rows: Task -> its rows.
        interleaved: Go round the tasks instead, so that a batch in order holds all of them.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]], interleaved: bool = False) -> None:
        self.rows = {task: list(own) for task, own in rows.items()}
        self.lengths = {task: len(own) for task, own in self.rows.items()}
        places = [(task, number) for task, count in self.lengths.items() for number in range(count)]
        self._places = sorted(places, key=lambda place: place[1]) if interleaved else places

    def __len__(self) -> int:
        """Return the number of rows of all tasks."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: list[int]) -> list[Sample]: ...
    def __getitem__(self, index: int | list[int]) -> Sample | list[Sample]:
        """Return a row, or a list of rows."""
        if isinstance(index, list):
            return [self[one] for one in index]
        task, number = self._places[index]
        row = self.rows[task][number]
        inputs = {name: getattr(row, name) for name in ("input_ids", "segment_ids", "position_ids")}
        return inputs, {task: row.labels}


class InstructionDataModule(TokenizedDataModule):
    r"""Conversations of several tasks as token rows for a causal language model (MFTCoder, KDD 2024).

    Layout: ``<root>/<task>/*.jsonl``, the folder's name is the task's. Every line is an object
    ``{"chat_rounds": [{"role": "system" | "human" | "bot", "content": ...}, ...]}`` or ``{"prompt": ..., "answer":
    ...}``; with ``tokenize_mode="pretrain"`` also ``{"text": ...}``. A conversation becomes ``<s>system\n...\n
    <s>human\n...\n<s>bot\n...END``, and what the bot says, with the end token, is trained on in every round.

    A part of each task's samples is set aside for validation, which is test and prediction too. Rows hold samples of
    one task each. Training goes through all rows in random order, hence the tasks come in proportion to their rows;
    ``sampling`` draws them by other ratios. Batches are mixed.

    Args:
        root: Folder of the tasks; None takes ``instructions`` below the environment variable LIGHTNING_MTL_DATA.
        tokenizer: Folder of a tokenizer in the layout of ``save_pretrained`` (nothing is downloaded), or a tokenizer.
            It needs an end token.
        tasks: Names of the tasks; None takes all folders, in sorted order.
        seq_length: Most inputs of a row.
        packing: ``"padding"`` puts one sample in a row, ``"pack"`` whole samples until the next does not fit,
            ``"concat"`` cuts a stream of all samples every ``seq_length`` tokens. Rows of several samples come with
            ``segment_ids`` and ``position_ids``; whether samples then see each other is up to the model.
        tokenize_mode: ``"sft"`` trains on what the bot says, ``"pretrain"`` on everything.
        dynamic_padding: Cut a batch behind its last trained position; otherwise it is ``seq_length`` wide.
        val_fraction: Part of each task's samples for validation, at least one sample.
        markers: Role -> what stands before its turns; None is ``<s>system\n`` and its like.
        sampling: How often every task is drawn; None takes every row once an epoch.
        steps_per_epoch: Steps of an epoch, with ``sampling``.
        options: See :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        - inputs: mapping of int64 tensors ``(B, L)``: ``input_ids``, ``attention_mask`` (1 token, 0 padding on the
          right), unless ``packing="padding"`` also ``segment_ids`` (0 padding, 1, 2, ... samples) and ``position_ids``.
        - target of every task that is in the batch: ``(B, L)`` int64, the token after every input, -100 where it is not
          trained on and in rows of other tasks.

    Raises:
        ValueError: If an argument is out of range.
        DatasetNotFoundError: If there is no such folder, or a task has no file.
        DataFileError: If a line cannot be read; names file and line.

    Note:
        Samples of which no answer is left (no turn of the bot, or one beyond ``seq_length``) are dropped and counted in
        ``token_counts``. The authors' code pads or packs to ``seq_length`` + 1 tokens before the shift, as here; its
        packed samples see those before them (``packed_attention="joint"`` of a model), and with
        ``tokenize_mode="pretrain"`` it also trains on the first token of a sample after another.

    References:
        Liu et al. *MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning*. KDD 2024.
        https://arxiv.org/abs/2311.02303. Authors' code: https://github.com/codefuse-ai/MFTCoder, Apache-2.0.
    """

    def __init__(
        self,
        root: str | None = None,
        tokenizer: TokenizerLike | str | None = None,
        tasks: list[str] | None = None,
        seq_length: int = 4096,
        packing: Packing = "padding",
        tokenize_mode: TokenizeMode = "sft",
        dynamic_padding: bool = True,
        val_fraction: float = 0.05,
        markers: dict[str, str] | None = None,
        sampling: TaskSampling | None = None,
        steps_per_epoch: int | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        name = type(self).__name__
        if tokenizer is None:
            raise ValueError(f"{name}: tokenizer must be the folder of a tokenizer, or a tokenizer, got None.")
        super().__init__(tokenizer, val_fraction, **options)
        if seq_length < 1:
            raise ValueError(f"{name}: seq_length must be positive, got {seq_length}.")
        if packing not in ("padding", "pack", "concat"):
            raise ValueError(f"{name}: packing must be 'padding', 'pack' or 'concat', got {packing!r}.")
        if tokenize_mode not in ("sft", "pretrain"):
            raise ValueError(f"{name}: tokenize_mode must be 'sft' or 'pretrain', got {tokenize_mode!r}.")
        if markers is not None and set(markers) != set(ROLES):
            raise ValueError(f"{name}: markers must have one entry for each of {ROLES}, got {sorted(markers)}.")
        if steps_per_epoch is not None and sampling is None:
            raise ValueError(f"{name}: steps_per_epoch needs sampling; without it an epoch takes every row once.")
        self.root = root
        self._task_names = tuple(tasks or ())
        self.seq_length = seq_length
        self.packing: Packing = packing
        self.tokenize_mode: TokenizeMode = tokenize_mode
        self.dynamic_padding = dynamic_padding
        self.markers = MARKERS if markers is None else dict(markers)
        self.sampling = sampling
        self.steps_per_epoch = steps_per_epoch
        self.token_counts: dict[Split, dict[str, TokenCounts]] = {}
        self._encoded: dict[str, list[EncodedSample]] = {}

    # ------------------------------------------------------------------ what it gives
    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        if self._task_names:
            return self._task_names
        root = self._root()
        found = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and list(path.glob("*.jsonl"))))
        if not found:
            raise DatasetNotFoundError.of(type(self).__name__, root, ["<task>/*.jsonl"], _LAYOUT)
        self._task_names = found
        return found

    @property
    def ignore_values(self) -> dict[str, float | None]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.tasks, -100.0)

    @property
    def task_ratios(self) -> dict[str, float]:
        """Task -> share of the training rows that are drawn, now.

        Raises:
            RuntimeError: If the training data are not set up.
        """
        if isinstance(self._stateful_sampler, TaskSampler):
            return dict(self._stateful_sampler.ratios)
        if "train" not in self.token_counts:
            raise RuntimeError(f"{type(self).__name__}: the training split is not set up; call setup('fit') first.")
        rows = {task: count.rows for task, count in self.token_counts["train"].items()}
        return {task: count / sum(rows.values()) for task, count in rows.items()}

    # ------------------------------------------------------------------ rows
    def _root(self) -> Path:
        return resolve_root(type(self).__name__, self.root, "instructions", _LAYOUT)

    def setup(self, stage: str | None = None) -> None:
        """Tokenize the conversations of the splits that ``stage`` needs, and put them into rows."""
        super().setup(stage)
        self._encoded.clear()
        for split, counts in self.token_counts.items():
            for task, count in counts.items():
                rank_zero_info(f"{type(self).__name__}: {split}/{task}: {count}")

    def make_dataset(self, split: Split) -> InstructionDataset:
        """Return the rows of a split."""
        rows: dict[str, list[Row]] = {}
        self.token_counts[split] = {}
        for task in self.tasks:
            samples = self._samples(task)
            kept = [sample for sample in self._part(samples, split) if sample.trained.any()]
            if not kept:
                raise EmptySplitError(
                    f"{type(self).__name__}: split '{split}' of task '{task}' must have a sample with an answer within "
                    f"seq_length={self.seq_length} tokens, got none; raise seq_length, or add samples."
                )
            rows[task] = pack_samples(kept, self.seq_length, self.packing)
            rows[task] = [row for row in rows[task] if (row.labels != -100).any()]
            self.token_counts[split][task] = TokenCounts(
                samples=len(kept),
                dropped=len(self._part(samples, split)) - len(kept),
                truncated=sum(sample.truncated for sample in kept),
                rows=len(rows[task]),
                tokens=sum(len(row.input_ids) for row in rows[task]),
                trained=sum(int((row.labels != -100).sum()) for row in rows[task]),
            )
        return InstructionDataset(rows, interleaved=split != "train")

    def partly_labelled(self, dataset: Dataset[Sample]) -> Dataset[Sample]:
        """Return the training rows with the labels that ``label_fraction`` leaves, a share of each task's own."""
        rows = dict(cast(InstructionDataset, dataset).rows)
        for task, share in self.label_fraction.items():
            kept = labelled_rows(task, len(rows[task]), share, self.seed).tolist()
            rows[task] = [
                row if keep else dataclasses.replace(row, labels=np.full_like(row.labels, -100))
                for row, keep in zip(rows[task], kept, strict=True)
            ]
        return InstructionDataset(rows)

    def _part(self, samples: list[EncodedSample], split: Split) -> list[EncodedSample]:
        return [samples[index] for index in self._held_out(len(samples), split)]

    def _samples(self, task: str) -> list[EncodedSample]:
        """Return all samples of a task, tokenized."""
        if task in self._encoded:
            return self._encoded[task]
        name, folder = type(self).__name__, self._root() / task
        files = sorted(folder.glob("*.jsonl"))
        if not files:
            raise DatasetNotFoundError.of(name, self._root(), [f"{task}/*.jsonl"], _LAYOUT)
        end = self._end()
        longest = None if self.packing == "concat" else self.seq_length + 1
        samples: list[EncodedSample] = []
        for path in files:
            table = read_table(name, path)
            for line, row in zip(table.lines, table.rows, strict=True):
                try:
                    turns = read_turns(row, self.tokenize_mode)
                except ValueError as error:
                    raise DataFileError.of(name, f"{path}:{line}", str(error), "correct the line") from error
                samples.append(encode_turns(turns, self.tokenizer, end, self.tokenize_mode, self.markers, longest))
        if len(samples) < 2:
            problem = f"a task must have at least 2 samples, one for validation, got {len(samples)}"
            raise DataFileError.of(name, folder, problem, "add samples, or leave the task out of tasks")
        self._encoded[task] = samples
        return samples

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                f"{type(self).__name__}: tokenizer must have an end token, {type(self.tokenizer).__name__} has none; "
                "set tokenizer.eos_token and save it again."
            )
        return int(end)

    # ------------------------------------------------------------------ batches
    def collate(self, samples: list[Sample]) -> Any:
        """Join rows into a batch."""
        inputs = [given for given, _ in samples]
        labels = [(task, np.asarray(target)) for _, targets in samples for task, target in targets.items()]
        width = self.seq_length
        if self.dynamic_padding:
            trained = [np.flatnonzero(row != -100) for _, row in labels]
            width = max([1, *(int(places[-1]) + 1 for places in trained if len(places))])
        joined = {"input_ids": _matrix([row["input_ids"] for row in inputs], self.pad_token_id, width)}
        lengths = torch.tensor([min(len(row["input_ids"]), width) for row in inputs])
        joined["attention_mask"] = (torch.arange(width) < lengths.unsqueeze(1)).long()
        if self.packing != "padding":
            for name in ("segment_ids", "position_ids"):
                joined[name] = _matrix([row[name] for row in inputs], 0, width)
        targets = {}
        nothing = np.empty(0, dtype=np.int64)
        for task in (task for task in self.tasks if any(task == own for own, _ in labels)):
            targets[task] = _matrix([row if own == task else nothing for own, row in labels], -100, width)
        return joined, targets

    def loader_over(self, dataset: Dataset[Sample], train: bool) -> ResumableDataLoader:
        """Return a loader over rows; with ``sampling`` the training loader draws the tasks."""
        if not train or self.sampling is None or not isinstance(dataset, InstructionDataset):
            return super().loader_over(dataset, train)
        sampler = TaskSampler(
            dataset.lengths,
            self.batch_size,
            self.sampling,
            mixed=True,
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
            **self._shards(),
        )
        return self._new_loader(dataset, sampler, self.collate)


def _matrix(rows: Sequence[NDArray[Any]], fill: int, width: int) -> torch.Tensor:
    """Return rows as a matrix of this width, cut or filled on the right."""
    found = pad_rows([row[:width] for row in rows], fill, 1)
    return torch.from_numpy(np.pad(found, ((0, 0), (0, width - found.shape[1])), constant_values=fill))
