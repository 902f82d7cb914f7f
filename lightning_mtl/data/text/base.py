"""What all data modules of text share."""

from __future__ import annotations

import dataclasses
import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch.utils.data import Dataset
from typing_extensions import Unpack

from lightning_mtl.data.base import _SPLITS_OF_STAGE, LoaderOptions, Sample, Split, labelled_rows
from lightning_mtl.data.errors import DataFileError, EmptySplitError
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.samplers import (
    ProportionalSampling,
    SequentialTaskSampler,
    TaskSampler,
    TaskSampling,
)
from lightning_mtl.data.text.by_length import ByLength
from lightning_mtl.data.text.cache import Tokens, cache_folder, kept_tokens, records_key
from lightning_mtl.data.text.collate import TextCollate
from lightning_mtl.data.text.dataset import TextDataset, TextSource
from lightning_mtl.data.text.encoding import Encoding, Truncation
from lightning_mtl.data.text.records import Classes, Form, Generation, Tags, TextRecords
from lightning_mtl.data.text.tokenized import TokenizedDataModule
from lightning_mtl.data.text.tokenizers import (
    TokenizerLike,
    TokenizerTraining,
    fingerprint,
    trained_tokenizer,
)


class TextOptions(LoaderOptions, total=False):
    """Options that all data modules of text have in common, besides those of the loaders.

    Attributes:
        tokenizer: Folder of a tokenizer in the layout of ``save_pretrained`` (nothing is downloaded), a tokenizer, or
            how to train one on the training texts; None (default) trains a WordPiece of 8192 tokens.
        max_length: Most tokens of a row, special ones included; 128 by default.
        truncation: Which segment of a longer row is cut: ``longest_first`` (default) token by token from the longer
            one; ``only_first``; ``only_second``; ``error`` raises and names the line.
        pad_to_multiple_of: The length of a batch is a multiple of this; 1 by default.
        cache: Whether tokens are kept on disk and mapped into memory (default), or made anew in memory every time.
        cache_dir: Folder of the cache; None (default) takes the environment variable LIGHTNING_MTL_CACHE, else
            ``lightning_mtl`` in XDG_CACHE_HOME or ``~/.cache``.
        sampling: How often the training batches draw every task; None (default) in proportion to its number of rows.
        mixed: Whether a training batch holds rows of several tasks; False by default.
        steps_per_epoch: Steps of an epoch; None (default) takes as many as one pass over all rows has full batches.
        batches_per_draw: Consecutive training batches of the drawn task, 1 by default: set it to the Trainer's
            ``accumulate_grad_batches`` where every update shall be of one task.
        bucket_batches: Training rows are sorted by length within windows of this many batches; 50 by default.
        val_fraction: Part of the training rows, 0.1 by default, that is set aside for validation where asked for.
    """

    tokenizer: TokenizerTraining | TokenizerLike | str | None
    max_length: int
    truncation: Truncation
    pad_to_multiple_of: int
    cache: bool
    cache_dir: str | None
    sampling: TaskSampling | None
    mixed: bool
    steps_per_epoch: int | None
    batches_per_draw: int
    bucket_batches: int
    val_fraction: float


class TextDataModule(TokenizedDataModule):
    """Text of several tasks: tokenized once, kept on disk, sampled by task, batched by length.

    Subclasses implement :meth:`forms` and :meth:`read`; where several tasks are asked about the same rows, also
    :meth:`sources`.

    Args:
        options: See :class:`TextOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`; ``batch_size`` is 32 by
            default. Training batches are always full, ``drop_last`` says nothing here.

    Shape:
        - inputs: mapping of int64 tensors: ``input_ids``, ``attention_mask`` (1 token, 0 padding on the right) and,
          with tokenizers that give them, ``token_type_ids``, each ``(B, L)``; ``(B, C, L)`` for :class:`Choice` and,
          with C = 2, :class:`Pair`. :class:`Generation` adds ``decoder_input_ids`` and ``decoder_attention_mask``
          ``(B, T)``
        - target of :class:`Classes`, :class:`Choice`, :class:`Pair`: ``(B,)`` int64, -100 unlabelled
        - target of :class:`Score`: ``(B,)`` float32, NaN unlabelled
        - target of :class:`Tags`: ``(B, L)`` int64, a word's label at its first piece, -100 elsewhere
        - target of :class:`Span`: ``(B, 2)`` int64, first and last token, -100 where there is no answer
        - target of :class:`Generation`: ``(B, T)`` int64, ending in the end token, -100 padding

        A training batch holds one task unless ``mixed``. In a mixed batch of one form of input the rows of other tasks
        carry the ignore value; with several forms of input it is ``{task: (inputs, {task: target})}``. Batches of
        evaluation hold one task, sorted by length.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The key of the cache is a hash of the texts and labels read, the content of the tokenizer, and the settings; a
        change of any makes the tokens anew, and nothing is removed. The folder can be deleted at any time.
    """

    def __init__(self, **options: Unpack[TextOptions]) -> None:
        tokenizer, max_length = options.pop("tokenizer", None), options.pop("max_length", 128)
        truncation, multiple = options.pop("truncation", "longest_first"), options.pop("pad_to_multiple_of", 1)
        cache, cache_dir = options.pop("cache", True), options.pop("cache_dir", None)
        sampling, mixed = options.pop("sampling", None), options.pop("mixed", False)
        steps_per_epoch, bucket_batches = options.pop("steps_per_epoch", None), options.pop("bucket_batches", 50)
        val_fraction, batches_per_draw = options.pop("val_fraction", 0.1), options.pop("batches_per_draw", 1)
        options.setdefault("batch_size", 32)
        tokenizer = TokenizerTraining() if tokenizer is None else tokenizer
        super().__init__(tokenizer, val_fraction, **cast(LoaderOptions, options))
        name = type(self).__name__
        choices = ("longest_first", "only_first", "only_second", "error")
        if truncation not in choices:
            raise ValueError(f"{name}: truncation must be one of {choices}, got {truncation!r}.")
        for argument, value, least in (("max_length", max_length, 4), ("pad_to_multiple_of", multiple, 1)):
            if value < least:
                raise ValueError(f"{name}: {argument} must be at least {least}, got {value}.")
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.pad_to_multiple_of = multiple
        self.cache_dir = cache_folder(cache_dir) if cache else None
        self.sampling = ProportionalSampling() if sampling is None else sampling
        self.mixed = mixed
        self.steps_per_epoch = steps_per_epoch
        self.batches_per_draw = batches_per_draw
        self.bucket_batches = bucket_batches
        self._read: dict[tuple[str, Split], list[TextRecords]] = {}
        self._made: dict[str, Tokens] = {}

    # ------------------------------------------------------------------ what a subclass says
    @abstractmethod
    def forms(self) -> Mapping[str, Form]:
        """Return task -> form of its target."""

    @abstractmethod
    def read(self, task: str, split: Split) -> TextRecords | Sequence[TextRecords] | None:
        """Return the rows of a task (of a source, see :meth:`sources`) in a split, None where it has none.

        Several records are rows of several files, one after the other.
        """

    def sources(self) -> Mapping[str, Sequence[str]]:
        """Return source -> tasks that are asked about its rows; by default every task has rows of its own."""
        return {task: (task,) for task in self.forms()}

    # ------------------------------------------------------------------ what it gives
    @property
    def ignore_values(self) -> dict[str, float | None]:
        """Task -> value of a target without label."""
        return {task: form.ignore for task, form in self.forms().items()}

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Task -> names of its classes, for tasks that have some."""
        return {task: tuple(form.labels) for task, form in self.forms().items() if isinstance(form, Classes | Tags)}

    @property
    def num_classes(self) -> dict[str, int]:
        """Task -> number of its classes, for tasks that have some."""
        return {task: len(names) for task, names in self.class_names.items()}

    @property
    def task_ratios(self) -> dict[str, float]:
        """Source -> probability that a training step (a row, when mixed) is of it, now.

        Raises:
            RuntimeError: If the training split is not set up.
        """
        if isinstance(self._stateful_sampler, TaskSampler):
            return dict(self._stateful_sampler.ratios)
        dataset = self.datasets.get("train")
        if not isinstance(dataset, TextDataset):
            raise RuntimeError(f"{type(self).__name__}: the training split is not set up; call setup('fit') first.")
        return self.sampling.probabilities(dataset.lengths, 0)

    def hold_out(self, records: TextRecords, split: Split) -> TextRecords:
        """Return the rows that a split has when ``val_fraction`` of a file is set aside for validation by the seed.

        Raises:
            DataFileError: If there is but one row.
        """
        if len(records) < 2:
            raise DataFileError.of(
                type(self).__name__,
                records.path,
                f"must hold at least two rows to set some aside for validation, got {len(records)}",
                "give validation rows of their own",
            )
        return records.take(self._held_out(len(records), split))

    # ------------------------------------------------------------------ tokens
    def encoding(self) -> Encoding:
        """Return what turns rows into tokens; all that it depends on is in its arguments and in the forms."""
        return Encoding(type(self).__name__, self.tokenizer, self.max_length, self.truncation)

    def collator(self) -> TextCollate:
        """Return what joins samples into a batch."""
        return TextCollate(self.pad_token_id, self.forms(), self.pad_to_multiple_of)

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenize the files, on one process; what is in the cache is left as it is."""
        if self.cache_dir is None:
            return
        stage = None if self.trainer is None or self.trainer.state.fn is None else str(self.trainer.state.fn.value)
        for split in _SPLITS_OF_STAGE.get(stage, _SPLITS_OF_STAGE[None]):
            for source in self.sources():
                for records in self._records(source, split):
                    self._tokens(source, records)
        self._read.clear()

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenizer and the tokens of the splits that ``stage`` needs."""
        super().setup(stage)
        self._read.clear()
        self._made.clear()

    def make_dataset(self, split: Split) -> TextDataset:
        """Return the rows of a split, tokenized."""
        sources: dict[str, TextSource] = {}
        forms = self.forms()
        for source, tasks in self.sources().items():
            parts = self._records(source, split)
            if parts:
                sources[source] = TextSource(
                    tokens=Tokens.joined([self._tokens(source, records) for records in parts]),
                    forms={task: forms[task] for task in tasks},
                    ids=[row for part in parts for row in (range(len(part)) if part.ids is None else part.ids)],
                    paths=[part.path for part in parts for _ in range(len(part))],
                    lines=[line for part in parts for line in part.lines],
                )
        if not sources:
            raise EmptySplitError(
                f"{type(self).__name__}: split '{split}' must hold at least one sample, none of the tasks "
                f"{list(forms)} has a file for it."
            )
        return TextDataset(sources)

    def partly_labelled(self, dataset: Dataset[Sample]) -> Dataset[Sample]:
        """Return the training rows with the labels that ``label_fraction`` leaves, a share of each task's own."""
        rows = cast(TextDataset, dataset)
        lengths = {task: rows.lengths[name] for name, source in rows.sources.items() for task in source.forms}
        return rows.with_kept(
            {
                task: labelled_rows(task, lengths[task], share, self.seed)
                for task, share in self.label_fraction.items()
                if task in lengths
            }
        )

    def _records(self, source: str, split: Split) -> list[TextRecords]:
        if (source, split) not in self._read:
            found = self.read(source, split)
            parts = [] if found is None else [found] if isinstance(found, TextRecords) else list(found)
            for records in parts:
                if not len(records):
                    raise DataFileError.of(
                        type(self).__name__, records.path, "must hold at least one row, got none", "correct the file"
                    )
            self._read[source, split] = parts
        return self._read[source, split]

    def _tokens(self, source: str, records: TextRecords) -> Tokens:
        forms = self.forms()
        own = {task: forms[task] for task in self.sources()[source]}
        encoding = self.encoding()
        if self.cache_dir is None:
            return encoding.encode(records, own)
        settings = {
            "tokenizer": self._fingerprint,
            "max_length": self.max_length,
            "truncation": self.truncation,
            "forms": {task: [type(form).__name__, dataclasses.asdict(form)] for task, form in own.items()},
        }
        key = records_key(records, settings)
        if key not in self._made:
            path = self.cache_dir / "tokens" / f"{key}.arrow"
            self._made[key] = kept_tokens(type(self).__name__, path, lambda: encoding.encode(records, own))
        return self._made[key]

    # ------------------------------------------------------------------ tokenizer
    def _make_tokenizer(self) -> Any:
        given = self._tokenizer_argument
        if isinstance(given, TokenizerTraining):
            tokenizer = trained_tokenizer(type(self).__name__, given, self._training_texts(), self.cache_dir)
        else:
            tokenizer = super()._make_tokenizer()
        self._fingerprint = fingerprint(tokenizer)
        return tokenizer

    def _training_texts(self) -> list[str]:
        texts: list[str] = []
        forms = self.forms()
        for source, tasks in self.sources().items():
            for records in self._records(source, "train"):
                rows = records.texts if records.choices is None else list(itertools.chain(*records.choices))
                texts += itertools.chain(*rows)
                for task in tasks:
                    if isinstance(forms[task], Generation):
                        texts += [text for text in records.targets_of(task) or [] if isinstance(text, str)]
        if not texts:
            raise ValueError(
                f"{type(self).__name__}: tokenizer must be given where there are no training texts to train one on."
            )
        return texts

    # ------------------------------------------------------------------ predictions
    def in_file_order(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Return task -> prediction of every row that ``predict`` reads, in the order of the files.

        Args:
            predictions: What ``trainer.predict(module, datamodule=data)`` returned, on one process.

        Raises:
            ValueError: If there are not as many batches and rows as the files have.
        """
        self.setup("predict")
        name, dataset = type(self).__name__, self.datasets["predict"]
        if not isinstance(dataset, TextDataset):
            raise TypeError(f"{name}: the prediction data must be a TextDataset, got {type(dataset).__name__}.")
        return dataset.in_file_order(name, list(self._evaluation_sampler(dataset)), predictions)

    # ------------------------------------------------------------------ loaders
    def collate(self, samples: list[Sample]) -> Any:
        """Join samples into a batch, padded to its longest."""
        return self.collator()(samples)

    def loader_over(self, dataset: Dataset[Sample], train: bool) -> ResumableDataLoader:
        """Return a loader over rows of several tasks.

        Args:
            dataset: A :class:`TextDataset`; any other data set of samples is loaded without regard to tasks.
            train: Whether tasks and rows are drawn at random, instead of each row once.
        """
        if not isinstance(dataset, TextDataset):
            return super().loader_over(dataset, train)
        sampler = self._training_sampler(dataset) if train else self._evaluation_sampler(dataset)
        return self._new_loader(dataset, sampler, self.collator())

    def predict_dataloader(self) -> ResumableDataLoader:
        """Return the prediction loader.

        Where the tasks have several forms of input its batches are ``{task: (inputs, {task: target})}``, so that only
        the tasks that can read a batch predict it; else they have the same form as the others.
        """
        loader = super().predict_dataloader()
        if len({form.inputs for form in self.forms().values()}) > 1 and isinstance(loader.dataset, TextDataset):
            loader.collate_fn = TextCollate(self.pad_token_id, self.forms(), self.pad_to_multiple_of, by_task=True)
        return loader

    def _training_sampler(self, dataset: TextDataset) -> TaskSampler:
        return TaskSampler(
            dataset.lengths,
            self.batch_size,
            sampling=self.sampling,
            mixed=self.mixed,
            steps_per_epoch=self.steps_per_epoch,
            sizes=cast(Any, dataset.sizes),
            bucket_batches=self.bucket_batches,
            batches_per_draw=self.batches_per_draw,
            seed=self.seed,
            **self._shards(),
        )

    def _evaluation_sampler(self, dataset: TextDataset) -> SequentialTaskSampler:
        return ByLength(cast(Any, dataset.sizes), batch_size=self.batch_size, seed=self.seed, **self._shards())
