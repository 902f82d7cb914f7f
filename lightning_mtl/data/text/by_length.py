"""Batches of evaluation, sorted by length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_mtl.data.samplers import SampleIndex, SequentialTaskSampler, mix_seed


class ByLength(SequentialTaskSampler):
    """Every row once, one task after the other, the rows of each sorted by length so that batches are even."""

    def __init__(self, sizes: Mapping[str, Sequence[int]], **options: Any) -> None:
        super().__init__({name: len(rows) for name, rows in sizes.items()}, **options)
        orders = [np.argsort(np.asarray(rows), kind="stable") for rows in sizes.values()]
        self._order = np.concatenate(
            [order + offset for order, offset in zip(orders, self.offsets, strict=True)]
        ).tolist()

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Iterate over this process's batches."""
        for batch in super().__iter__():
            yield [SampleIndex(self._order[index], mix_seed(self.seed, self._order[index])) for index in batch]
