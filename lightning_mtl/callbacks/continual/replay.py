"""Experience replay: remember samples of a stream, and train on them again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_mtl.callbacks.continual.memory import PredictFn, ReplayCallback, num_processes, process_rank
from lightning_mtl.callbacks.continual.module_side import (
    LossFn,
    by_name,
    matching_loss,
    replay_loss,
    wrap_training_step,
)
from lightning_mtl.callbacks.continual.stream import CurrentTask
from lightning_mtl.data.continual.buffer import ReplayBuffer, count_samples, join, take
from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.losses.distillation.logit_matching import LogitMatching


class ExperienceReplay(ReplayCallback):
    """Add samples from a memory of the stream to every training batch (ER).

    The module's ``training_step`` is given the batch with the samples appended, so it works with any LightningModule,
    with automatic and manual optimization, whose batches are nests of tensors. While the memory is empty the batch
    stays as it is.

    Args:
        replay_size: Samples that are added to a batch, per process; None adds as many as the batch has.
        buffer: The memory; None shares that of the first replay callback, or makes a reservoir of 200 samples.
        write_every_epoch: Offer a sample to the memory in every epoch instead of in the first one of its task; None
            does so where it is not known where tasks begin.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.

    Raises:
        ValueError: If ``replay_size`` is not positive, or a batch is no nest of tensors.
        MisconfigurationException: If the buffer is larger than the data.

    Note:
        The loss is the mean over the joined batch, so that new and old samples count alike. Samples are remembered as
        they came out of the loader, augmentation included.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_mtl.data import ReservoirBuffer
        >>> replay = ExperienceReplay(buffer=ReservoirBuffer(capacity=500))
        >>> trainer = Trainer(callbacks=[replay], accelerator="cpu", logger=False)

    References:
        Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr, Ranzato. *On Tiny Episodic Memories in Continual
        Learning*. 2019. https://arxiv.org/abs/1902.10486.
    """

    def __init__(
        self,
        replay_size: int | None = None,
        buffer: ReplayBuffer | None = None,
        write_every_epoch: bool | None = None,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(buffer, write_every_epoch, current_task)
        if replay_size is not None and replay_size < 1:
            raise ValueError(f"ExperienceReplay: replay_size must be at least 1, got {replay_size}.")
        self.replay_size = replay_size
        self.samples_replayed = 0
        self._restore: Callable[[], None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the memory; one callback may change the batches."""
        super().setup(trainer, pl_module, stage)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        names = [type(c).__name__ for c in callbacks if isinstance(c, ExperienceReplay)]
        if len(names) > 1:
            raise MisconfigurationException(f"ExperienceReplay: a Trainer takes one of {', '.join(names)}; keep one.")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the module's step see the joined batch."""
        super().on_train_start(trainer, pl_module)
        self._restore = wrap_training_step(pl_module, functools.partial(self._step, trainer, pl_module))

    def _step(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: Callable[..., Any], batch: Any, *rest: Any
    ) -> Any:
        if len(self.memory):
            count = self.replay_size or count_samples(batch, type(self).__name__)
            batch = join(batch, self.draw_share(count, module.device)["batch"])
        return step(batch, *rest)

    def draw_share(self, count: int, device: torch.device) -> Any:
        """Return samples for this process; the processes share out one draw."""
        world = num_processes()
        drawn = self.memory.sample(count * world)
        own = range(process_rank(), count_samples(drawn, type(self).__name__), world)
        own = own or range(1)  # fewer samples than processes
        self.samples_replayed += len(own)
        return move_data_to_device(take(drawn, list(own)), device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the module its own step back."""
        super().on_train_end(trainer, pl_module)
        self._unwrap()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the module its own step back."""
        self._unwrap()

    def _unwrap(self) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None

    def state_dict(self) -> dict[str, Any]:
        """Return the memory and what was replayed."""
        return {**super().state_dict(), "samples_replayed": self.samples_replayed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state_dict)
        self.samples_replayed = state_dict["samples_replayed"]


class DarkExperienceReplay(ExperienceReplay):
    r"""Replay samples with the logits that the network once gave them, and with their labels (DER++).

    .. math:: L = L_{\mathrm{batch}} + \alpha\, \mathrm{match}(h(x'), z') + \beta\, L(x'', y'')

    with two independent draws from the memory, the logits :math:`z'` stored when :math:`x'` was seen, and the module's
    own loss :math:`L`. With :math:`\beta = 0` it is DER.

    Args:
        alpha: Weight of the stored logits, not negative. The paper tunes it in 0.1 to 1.
        beta: Weight of the labels, not negative. The paper tunes it in 0.5 to 1.
        replay_size: Samples in each of the two draws, per process; None takes as many as the batch has.
        buffer: The memory; None shares that of the first replay callback, or makes a reservoir of 200 samples.
        loss_fn: Callable from module and batch to the loss on remembered samples; None asks the module, see
            :func:`replay_loss`.
        predict_fn: Callable from module and batch to the logits, a tensor or a mapping of tensors; None calls the
            module with the inputs.
        match: Loss between logits and stored logits; None takes
            :class:`~lightning_mtl.losses.LogitMatching`, the paper's.
        write_every_epoch: Offer a sample to the memory in every epoch instead of in the first one of its task; None
            does so where it is not known where tasks begin.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.

    Raises:
        ValueError: If a weight is negative or a batch is no nest of tensors.
        MisconfigurationException: If the module optimizes manually, or the buffer is larger than the data.

    Note:
        The logits come from a second forward pass of batches of which something is remembered, in training mode and
        before the step; running statistics are left alone. All classes are matched, those that had not come up yet
        when the sample was stored included, as in the authors' code.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DarkExperienceReplay(alpha=0.3)], accelerator="cpu", logger=False)

    References:
        Buzzega, Boschini, Porrello, Abati, Calderara. *Dark Experience for General Continual Learning: a Strong,
        Simple Baseline*. NeurIPS 2020. https://arxiv.org/abs/2004.07211, Eq. 6. Authors' code:
        https://github.com/aimagelab/mammoth, MIT.
    """

    needs_logits = True

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        replay_size: int | None = None,
        buffer: ReplayBuffer | None = None,
        loss_fn: LossFn | None = None,
        predict_fn: PredictFn | None = None,
        match: LabelledLoss | None = None,
        write_every_epoch: bool | None = None,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(replay_size, buffer, write_every_epoch, current_task)
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if weight < 0:
                raise ValueError(f"DarkExperienceReplay: {name} must not be negative, got {weight}.")
        self.alpha = alpha
        self.beta = beta
        self.loss_fn = loss_fn
        self.predict_fn = predict_fn
        self.match = LogitMatching() if match is None else match

    def predict(self, module: pl.LightningModule, batch: Any) -> Any:
        """Return the logits of a batch."""
        return super().predict(module, batch) if self.predict_fn is None else self.predict_fn(module, batch)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look whether the module leaves its loss to the Trainer."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"DarkExperienceReplay: {type(pl_module).__name__} optimizes manually, so nothing can be added to its "
                "loss; use ExperienceReplay, or automatic optimization."
            )

    def _step(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: Callable[..., Any], batch: Any, *rest: Any
    ) -> Any:
        outputs = step(batch, *rest)
        if not len(self.memory) or outputs is None:
            return outputs
        count = self.replay_size or count_samples(batch, type(self).__name__)
        extra: Tensor | float = 0.0
        if self.alpha:
            drawn = self.draw_share(count, module.device)
            extra = extra + self.alpha * matching_loss(
                self.match, by_name(self.predict(module, drawn["batch"])), drawn["logits"]
            )
        if self.beta:
            drawn = self.draw_share(count, module.device)
            extra = extra + self.beta * replay_loss(module, drawn["batch"], self.loss_fn)
        if isinstance(outputs, Mapping):
            return {**outputs, "loss": outputs["loss"] + extra}
        return outputs + extra
