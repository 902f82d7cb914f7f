"""Samples of text joined into a batch, padded to its longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_mtl.data.base import Sample
from lightning_mtl.data.text.records import IGNORE, Form, Generation, Tags

TextBatch = tuple[dict[str, Tensor], dict[str, Tensor]]


def pad_rows(rows: Sequence[NDArray[Any]], fill: int, multiple: int = 1) -> NDArray[np.int64]:
    """Return rows as one matrix, filled on the right.

    Args:
        rows: Rows of integers.
        fill: What stands where a row has ended.
        multiple: The width is a multiple of this.

    Example:
        >>> import numpy as np
        >>> pad_rows([np.array([1, 2]), np.array([3])], fill=0).tolist()
        [[1, 2], [3, 0]]
    """
    width = max(len(row) for row in rows)
    matrix = np.full((len(rows), -(-width // multiple) * multiple), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        matrix[number, : len(row)] = row
    return matrix


class TextCollate:
    """Joins samples of a :class:`~lightning_mtl.data.text.TextDataset` into a batch.

    Args:
        pad_token_id: What ``input_ids`` are padded with.
        forms: Task -> form of its target.
        pad_to_multiple_of: The length of a batch is a multiple of this.
        by_task: Whether rows of different tasks stand apart even if their inputs have the same form.
    """

    def __init__(
        self, pad_token_id: int, forms: Mapping[str, Form], pad_to_multiple_of: int = 1, by_task: bool = False
    ) -> None:
        self.pad_token_id = pad_token_id
        self.forms = dict(forms)
        self.multiple = pad_to_multiple_of
        self.by_task = by_task

    def __call__(self, samples: list[Sample] | Sample) -> Any:
        """Return ``(inputs, {task: target})``.

        A sample alone is a batch of one: with ``overfit_batches`` Lightning puts a sampler of single samples in place.

        Rows of different tasks whose inputs have the same form are joined in one, and carry the ignore value for the
        tasks of the others; with different forms of input, or ``by_task``, it is
        ``{task: (inputs, {task: target})}``.
        """
        samples = samples if isinstance(samples, list) else [samples]
        groups: dict[str, list[int]] = {}
        for number, (_, targets) in enumerate(samples):
            groups.setdefault(next(iter(targets)), []).append(number)
        shapes = {self._shape(samples[rows[0]][0]) for rows in groups.values()}
        if len(shapes) == 1 and not self.by_task:
            return self._join(samples)
        return {task: self._join([samples[row] for row in rows]) for task, rows in groups.items()}

    @staticmethod
    def _shape(inputs: Any) -> tuple[Any, ...]:
        """Return what must agree for inputs to stand in one batch: number of alternatives, and names."""
        return (len(inputs), *inputs[0]) if isinstance(inputs, list) else (0, *inputs)

    def _join(self, samples: list[Sample]) -> TextBatch:
        inputs = [inputs for inputs, _ in samples]
        if isinstance(inputs[0], list):
            folds = len(inputs[0])
            joined = self._pad([choice for choices in inputs for choice in choices])
            joined = {name: value.view(len(samples), folds, -1) for name, value in joined.items()}
        else:
            joined = self._pad(inputs)
        names = dict.fromkeys(task for _, targets in samples for task in targets)
        length = joined["input_ids"].shape[-1]
        targets = {task: self._target(self.forms[task], [t.get(task) for _, t in samples], length) for task in names}
        return joined, targets

    def _pad(self, rows: list[Mapping[str, NDArray[Any]]]) -> dict[str, Tensor]:
        joined: dict[str, Tensor] = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            fill = 0 if name == "token_type_ids" else self.pad_token_id
            joined[name] = torch.from_numpy(pad_rows(values, fill, self.multiple))
            if name.endswith("input_ids"):
                lengths = np.array([len(value) for value in values])
                mask = np.arange(joined[name].shape[1]) < lengths[:, None]
                joined[name.replace("input_ids", "attention_mask")] = torch.from_numpy(mask.astype(np.int64))
        return joined

    def _target(self, form: Form, values: list[Any], length: int) -> Tensor:
        if isinstance(form, Tags | Generation):
            nothing = np.full(1, IGNORE)
            rows = pad_rows([nothing if value is None else value for value in values], IGNORE, self.multiple)
            if isinstance(form, Tags) and rows.shape[1] < length:
                rows = np.pad(rows, ((0, 0), (0, length - rows.shape[1])), constant_values=IGNORE)
            return torch.from_numpy(rows)
        present = next(value for value in values if value is not None)
        absent = np.full_like(present, form.ignore)
        rows = np.stack([absent if value is None else value for value in values])
        return torch.from_numpy(rows if rows.dtype.kind == "f" else rows.astype(np.int64))
