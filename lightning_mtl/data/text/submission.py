"""Predictions of the test files of benchmarks whose labels are kept by a server."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_mtl.data.text.base import TextDataModule
from lightning_mtl.data.text.dataset import TextDataset, TextSource


class BenchmarkDataModule(TextDataModule):
    """Base of data modules of such a benchmark; subclasses implement :meth:`submission_files` as well."""

    @abstractmethod
    def submission_files(self, task: str, values: Tensor, source: TextSource) -> dict[str, str]:
        """Return name -> content of the files that hold a task's predictions.

        Args:
            task: The task.
            values: Prediction of every row, in the order of the files.
            source: These rows.
        """

    def write_submission(self, predictions: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str]) -> list[Path]:
        """Write predictions of the test files as the benchmark's server wants them, see :meth:`submission_files`.

        Args:
            predictions: What ``trainer.predict(module, datamodule=data)`` returned, on one process.
            folder: Folder to write to; it is made where it does not exist.

        Returns:
            The files.

        Raises:
            ValueError: If there are not as many batches and rows as the test files have.

        Note:
            Of classes a prediction may be the class id, one probability a class, or that of the second of two.
        """
        ordered = self.in_file_order(predictions)
        sources = cast(TextDataset, self.datasets["predict"]).sources
        written = []
        Path(folder).mkdir(parents=True, exist_ok=True)
        for task, rows in ordered.items():
            values = torch.stack([torch.as_tensor(row) for row in rows]).detach().cpu()
            for name, content in self.submission_files(task, values, sources[task]).items():
                path = Path(folder) / name
                path.write_text(content, encoding="utf-8")
                written.append(path)
        return written


def chosen_classes(values: Tensor) -> list[int]:
    """Return the class of every row, from class ids, probabilities of all classes, or those of the second of two.

    Example:
        >>> chosen_classes(torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])), chosen_classes(torch.tensor([0.2, 0.7]))
        ([1, 0], [0, 1])
    """
    if values.is_floating_point():
        values = values.argmax(-1) if values.ndim == 2 and values.shape[1] > 1 else values > 0.5
    return [int(number) for number in values.flatten().tolist()]
