"""How much the losses rise at the perturbed parameters of a sharpness-aware balancer."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback


class SharpnessMonitor(Callback):
    r"""Log :math:`L_i(\theta + \epsilon_i) - L_i(\theta)` of every task, which a sharpness-aware balancer knows anyway.

    Works with any LightningModule whose attribute ``balancer`` has ``sharpness``, as
    :class:`~lightning_mtl.balancers.FlatRegions` and :class:`~lightning_mtl.balancers.SAM` have, and costs nothing. It
    logs ``sharpness/<task>`` at the Trainer's cadence, the value of the last batch, averaged over processes; for
    ``FlatRegions`` also ``sharpness/<task>/flat_cosine``, the cosine between a task's loss gradient and its flat
    gradient.

    Raises:
        MisconfigurationException: If the module has no such balancer.

    References:
        Phan, Tran, Tran, Ho, Phung, Le. *Improving Multi-task Learning via Seeking Task-based Flat Regions*. 2022.
        https://arxiv.org/abs/2211.13723
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there is a balancer to ask."""
        balancer = getattr(pl_module, "balancer", None)
        if not hasattr(balancer, "sharpness"):
            raise MisconfigurationException(
                "SharpnessMonitor: the module's balancer must be sharpness-aware, got "
                f"{type(balancer).__name__}; wrap a gradient balancer in FlatRegions, use SAM, or remove the callback."
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the balancer saw."""
        if trainer.global_step % max(cast(Any, trainer).log_every_n_steps, 1):
            return
        balancer = cast(Any, pl_module.balancer)
        values = {f"sharpness/{task}": rise for task, rise in balancer.sharpness.items()}
        cosines = getattr(balancer, "flat_cosines", {})
        values |= {f"sharpness/{task}/flat_cosine": cosine for task, cosine in cosines.items()}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
