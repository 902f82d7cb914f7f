"""What a Trainer and its module tell about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn


def accumulated_batches(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Return what Lightning divided the loss by."""
    return trainer.accumulate_grad_batches if module.automatic_optimization else 1


def loss_scale(trainer: pl.Trainer) -> float:
    """Return what the precision plugin multiplied the loss by."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def loss_of_batch(
    trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, backward: Sequence[Tensor]
) -> Tensor | None:
    """Return the loss of a batch: what ``training_step`` returned, or the mean of what went backward, or None.

    Args:
        trainer: The Trainer.
        module: Its module.
        outputs: What ``on_train_batch_end`` is given.
        backward: The losses that were differentiated.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach() * accumulated_batches(trainer, module)
    return torch.stack(list(backward)).mean() / loss_scale(trainer) if backward else None


def num_trained_parameters(module: nn.Module) -> int:
    """Return the number of trained parameters outside of embeddings."""
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return sum(p.numel() for p in module.parameters() if p.requires_grad and id(p) not in embeddings)


def peak_learning_rate(trainer: pl.Trainer) -> float:
    """Return the largest learning rate that a run is going to have, as far as its optimizers know it."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return max(float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups)
