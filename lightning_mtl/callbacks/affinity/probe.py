"""The fixed batches on which mean gradients are taken."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Subset


def validation_probe(trainer: pl.Trainer, batches: int) -> DataLoader[Any]:
    """Return a loader of its own over the first samples of the validation data, which leaves the Trainer's alone.

    Every process takes every other sample; all have the same number of batches, which are full if there are enough
    samples for one.

    Args:
        trainer: A Trainer whose fit has begun.
        batches: Largest number of batches.

    Raises:
        MisconfigurationException: If there is no validation data, or it is not one loader of fixed batch size over a
            data set with a length.
    """
    loader: Any = trainer.val_dataloaders
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    dataset: Any = getattr(loader, "dataset", None)
    size = getattr(loader, "batch_size", None)
    world, rank = trainer.world_size, trainer.global_rank
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and size and len(dataset) >= world):
        raise MisconfigurationException(
            "TaskAffinity: probe='val' needs one validation DataLoader with a batch size over a data set of at least "
            f"one sample for each process, got {type(loader).__name__}; pass the batches as probe=, for example a "
            "DataLoader."
        )
    each = len(dataset) // world
    samples = min(batches, each // size) * size or each
    return DataLoader(
        Subset(dataset, range(rank, samples * world, world)), batch_size=size, collate_fn=loader.collate_fn
    )
