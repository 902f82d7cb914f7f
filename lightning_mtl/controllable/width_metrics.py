"""Metrics of several configurations in every validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.controllable.module import ControllableModule, WidthConfig
from lightning_mtl.module import _sources
from lightning_mtl.tasks.base import Task


class WidthMetrics(Callback):
    """Log the validation metrics of a :class:`ControllableModule` at several widths.

    The validation itself is that of the widths in use, all of them full unless others were chosen. Every batch of it is
    predicted at each further configuration, and the metrics are logged as ``val/<name>/<task>/<metric>``, over all
    processes. Where inputs are tensors, ``flops/<name>`` are the floating point operations of one sample.

    Args:
        configs: Name -> configuration; None takes ``smallest`` and, halfway to it, ``encoder_half``, the encoder at the
            width in the middle of its list with full decoders, and ``decoders_half``, the other way round.

    Raises:
        ValueError: If a name is that of a task or holds a slash.
        MisconfigurationException: If the module is not controllable.

    References:
        Aich, Schulter, Roy-Chowdhury, Chandraker, Suh. *Efficient Controllable Multi-Task Architectures*. ICCV 2023.
        https://arxiv.org/abs/2308.11744.
    """

    def __init__(self, configs: dict[str, WidthConfig] | None = None) -> None:
        if wrong := [name for name in configs or {} if not name or "/" in name]:
            raise ValueError(f"WidthMetrics: configs must have names without '/', got {wrong}.")
        self.configs = configs
        self._metrics: dict[str, dict[str, MetricCollection]] = {}
        self._flops: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the module."""
        if not isinstance(pl_module, ControllableModule):
            raise MisconfigurationException(
                f"WidthMetrics: the module must be a ControllableModule, got {type(pl_module).__name__}; remove the "
                "callback."
            )
        if taken := sorted(set(self.configs or {}) & set(pl_module.tasks)):
            raise ValueError(f"WidthMetrics: configs must not have the names of tasks, got {taken}.")
        for config in self._all(pl_module).values():
            with pl_module.at(config):  # an unknown width is told now
                pass

    def _all(self, module: ControllableModule) -> dict[str, WidthConfig]:
        if self.configs is not None:
            return self.configs
        widths = module.slimmable_encoder.widths
        middle = {task: _middle(module.decoder(task).widths) for task in module.tasks}
        return {
            "smallest": module.smallest,
            "encoder_half": WidthConfig(_middle(widths), module.full.decoders),
            "decoders_half": WidthConfig(1.0, middle),
        }

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with empty metrics."""
        module = cast(ControllableModule, pl_module)
        self._metrics = {
            name: {task: cast(Task, member).metrics.clone() for task, member in module.tasks.items()}
            for name in self._all(module)
        }
        for found in self._metrics.values():
            for metrics in found.values():
                metrics.reset()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict the batch at every configuration."""
        module = cast(ControllableModule, pl_module)
        with trainer.precision_plugin.forward_context():
            for name, config in self._all(module).items():
                for _, inputs, targets in _sources(batch):
                    module.update_metrics_at(config, inputs, targets, self._metrics[name])
                    if name not in self._flops and isinstance(inputs, Tensor):
                        self._flops[name] = float(sum(module.flops(config, inputs.shape[1:]).values()))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the metrics."""
        logged: dict[str, Any] = {f"flops/{name}": value for name, value in self._flops.items()}
        evaluated = [name for name, _ in cast(ControllableModule, pl_module).evaluated_tasks()]
        for name, tasks in self._metrics.items():
            values: Mapping[str, Any] = {task: tasks[task].compute() for task in evaluated}
            logged |= {f"val/{name}/{t}/{m}": value for t, found in values.items() for m, value in found.items()}
        pl_module.log_dict(logged, on_step=False, on_epoch=True, sync_dist=is_distributed(), batch_size=1)


def _middle(widths: tuple[float, ...]) -> float:
    return widths[(len(widths) - 1) // 2]
