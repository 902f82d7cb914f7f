"""When masks are switched on, when their predictors stop, and what is saved."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_mtl.nn.dynamic_pruning.layers import DynamicConv, dynamic_layers
from lightning_mtl.nn.dynamic_pruning.macs import macs_shares


class DynamicPruning(Callback):
    r"""Train the masks of dynamic convolutions in three phases, and log what they save (Elkerdawy et al., CVPR 2022).

    For the first ``warmup_epochs`` epochs the network is dense and the predictors learn beside it. Then the masks are
    switched on. After the share ``cooldown`` of the remaining epochs the mask loss ends and the predictors stay as they
    are. The phase follows from the epoch, so a resumed run goes on in its own; whether the masks are on is part of the
    checkpoint's weights.

    The learning rate of the predictors is kept as it was at the start, whatever the scheduler does, if they have a
    parameter group of their own (as those of :class:`~lightning_mtl.nn.DynamicEncoder` have).

    Logged at the Trainer's cadence: ``pruning/macs_share``, the share of the multiply-accumulate operations (MACs) of
    the dynamic convolutions that is left; ``pruning/target_macs_share``, the same if all predictors were right;
    ``pruning/<layer>/mask_accuracy`` and ``pruning/<layer>/kept``, the mean number of kept channels. After a validation
    ``val/macs_share`` and ``val/target_macs_share``. MACs are theoretical: all channels are computed and then masked.

    Args:
        warmup_epochs: Epochs before masks are switched on.
        cooldown: Share of the remaining epochs after which the predictors stop learning; 1 never stops them.

    Raises:
        ValueError: If a number is out of range.
        MisconfigurationException: If the module has no dynamic convolution, or the number of epochs is not known or not
            larger than the warm-up.

    Note:
        The warm-up is not in the paper, whose runs are long enough to recover from the first, random masks; it matters
        with ``normalize="softmax"``, see the page of the method. Predictors
        that have stopped keep ``requires_grad``, as DDP waits for every parameter that it has seen at the start; their
        gradients are zero and are dropped before the optimizer's step, so neither momentum nor decay moves them.

    References:
        Elkerdawy et al. *Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction*.
        CVPR 2022. https://arxiv.org/abs/2110.08232
    """

    def __init__(self, warmup_epochs: int = 3, cooldown: float = 0.5) -> None:
        super().__init__()
        if warmup_epochs < 0:
            raise ValueError(f"DynamicPruning: warmup_epochs must not be negative, got {warmup_epochs}.")
        if not 0 < cooldown <= 1:
            raise ValueError(f"DynamicPruning: cooldown must be in (0, 1], got {cooldown}.")
        self.warmup_epochs = warmup_epochs
        self.cooldown = cooldown
        self._layers: dict[str, DynamicConv] = {}
        self._rates: dict[tuple[int, int], float] = {}  # of the predictors' groups, by optimizer and position

    # ------------------------------------------------------------------ phases
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the dynamic convolutions, and check that the phases fit into the run."""
        self._layers = dynamic_layers(pl_module)
        if not self._layers:
            raise MisconfigurationException(
                f"DynamicPruning: the module must have dynamic convolutions, got {type(pl_module).__name__} without "
                "one; put DynamicEncoder around its encoder, or remove the callback."
            )
        if stage != "fit":
            return
        epochs = trainer.max_epochs
        if (epochs is None or epochs < 0) and self.cooldown < 1:
            raise MisconfigurationException(
                f"DynamicPruning: cooldown={self.cooldown} is a share of the epochs, got max_epochs={epochs}; set the "
                "Trainer's max_epochs, or cooldown=1."
            )
        if epochs is not None and 0 <= epochs <= self.warmup_epochs and not cast(Any, trainer).fast_dev_run:
            raise MisconfigurationException(
                f"DynamicPruning: warmup_epochs must be smaller than max_epochs, got {self.warmup_epochs} and {epochs}."
            )
        self._set_phase(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the parameter groups of the predictors and their learning rates."""
        predictors = {id(parameter) for parameter in self._predictor_parameters()}
        self._rates = {
            (number, position): float(group.get("initial_lr", group["lr"]))
            for number, optimizer in enumerate(trainer.optimizers)
            for position, group in enumerate(optimizer.param_groups)
            if group["params"] and all(id(parameter) in predictors for parameter in group["params"])
        }

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Switch the masks on or the predictors off when their time has come."""
        self._set_phase(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the predictors back their learning rate."""
        for (number, position), rate in self._rates.items():
            group = trainer.optimizers[number].param_groups[position]  # loading a state makes new groups
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drop the zero gradients of predictors that have stopped, so that the optimizer passes over them."""
        for layer in self._layers.values():
            if not layer.learning and layer.predictor is not None:
                for parameter in layer.predictor.parameters():
                    parameter.grad = None

    def _set_phase(self, trainer: pl.Trainer) -> None:
        epoch, epochs = trainer.current_epoch, trainer.max_epochs
        masking = epoch >= self.warmup_epochs
        learning = True
        if self.cooldown < 1 and epochs is not None and not cast(Any, trainer).fast_dev_run:
            learning = epoch < self.warmup_epochs + self.cooldown * (epochs - self.warmup_epochs)
        for layer in self._layers.values():
            layer.learning = learning
            if layer.masking != masking:
                layer.masking = masking

    def _predictor_parameters(self) -> list[nn.Parameter]:
        predictors = [layer.predictor for layer in self._layers.values() if layer.predictor is not None]
        return [parameter for predictor in predictors for parameter in predictor.parameters()]

    # ------------------------------------------------------------------ numbers
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log shares, accuracies and kept channels of the last batch."""
        if trainer.global_step % max(cast(Any, trainer).log_every_n_steps, 1):
            return
        share, target_share = macs_shares(pl_module)
        values = {"pruning/macs_share": share, "pruning/target_macs_share": target_share}
        for name, layer in self._layers.items():
            if layer.last is None or layer.last.logits is None:
                continue
            guess = layer.last.logits.detach() > 0
            values[f"pruning/{name}/mask_accuracy"] = (guess == layer.last.target.bool()).float().mean()
            values[f"pruning/{name}/kept"] = layer.last.mask.sum(dim=1).mean()
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1, sync_dist=trainer.world_size > 1)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the shares of a batch to those of the validation."""
        share, target_share = macs_shares(pl_module)
        images = next(layer.last.mask.shape[0] for layer in self._layers.values() if layer.last is not None)
        pl_module.log_dict(
            {"val/macs_share": share, "val/target_macs_share": target_share},
            on_step=False,
            on_epoch=True,
            batch_size=images,
            sync_dist=trainer.world_size > 1,
            add_dataloader_idx=False,
        )
