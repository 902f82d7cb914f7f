"""A data module that a configuration file can name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_mtl.data import DatasetNotFoundError
from tests.toys import Table


class TableData(LightningDataModule):
    """Rows of a table.

    Args:
        rows: Number of rows.
        present: Whether the data set is found.
    """

    def __init__(self, rows: int = 32, present: bool = True) -> None:
        super().__init__()
        self.rows = rows
        self.present = present

    def setup(self, stage: str) -> None:
        if not self.present:
            raise DatasetNotFoundError("TableData: root must name the folder of the data set, got None.")

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Table(self.rows), batch_size=8)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Table(self.rows, seed=1), batch_size=8)

    test_dataloader = predict_dataloader = val_dataloader
