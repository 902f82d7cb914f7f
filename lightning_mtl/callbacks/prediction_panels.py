"""Input, target and prediction of every task side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_mtl.callbacks.panels import Panels, Row
from lightning_mtl.tasks.base import Task

_SMALLEST_DRAWING = 320  # pixels; names and scores of boxes can be read


class PredictionPanels(Panels):
    """Draw input, target and prediction of every task for the same few validation samples.

    After a validation the samples seen first are predicted and drawn, one row a sample: the input, then target and
    prediction of every task that is a picture (``task.render``). The picture goes to every logger that takes images
    (TensorBoard; Weights & Biases and others with ``log_image``); if there is none, it becomes a PNG file in the folder
    ``panels`` of the run. It works with any module that has ``tasks`` (name -> :class:`~lightning_mtl.tasks.Task`) and
    whose ``forward`` gives a prediction per task. Weights, running statistics, modes and random states stay as they
    are.

    Boxes are drawn over the input in the colours of their classes, with names and scores; the cells are then larger.

    Args:
        num_samples: How many samples to draw.
        every_n_epochs: Draw after the validation of every n-th epoch, from the first one on.
        mean: Mean that was subtracted from the channels of the input; ImageNet's by default. None for inputs in [0, 1].
        std: Standard deviation that the channels of the input were divided by; None for inputs in [0, 1].
        name: Name of the picture in the loggers.

    Raises:
        ValueError: If a number is not positive, or only one of ``mean`` and ``std`` is given.
        MisconfigurationException: If the module has no tasks that draw, or the batches hold no images.

    Note:
        With several processes the samples are those of the first one. The samples are kept on the CPU. In sanity checks
        and in a ``fast_dev_run`` nothing is drawn.
    """

    def __init__(
        self,
        num_samples: int = 4,
        every_n_epochs: int = 1,
        mean: Sequence[float] | None = (0.485, 0.456, 0.406),
        std: Sequence[float] | None = (0.229, 0.224, 0.225),
        name: str = "predictions",
    ) -> None:
        super().__init__(num_samples, every_n_epochs, mean, std, name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there are tasks, and forget the samples of another data set."""
        if not isinstance(getattr(pl_module, "tasks", None), nn.ModuleDict):
            raise MisconfigurationException(
                "PredictionPanels: the module must have tasks in a ModuleDict 'tasks', got "
                f"{type(pl_module).__name__}; use MultiTaskModule, or remove the callback."
            )
        super().setup(trainer, pl_module, stage)

    def rows(
        self, trainer: pl.Trainer, module: pl.LightningModule, inputs: Any, targets: Mapping[str, Any]
    ) -> Iterator[Row]:
        """Yield input, targets and predictions of every sample."""
        tasks = {name: cast(Task, child) for name, child in cast(nn.ModuleDict, module.tasks).items()}
        images, scale = torch.empty((0, 3, 1, 1), dtype=torch.uint8), 1
        if any(task.draws_on_input for task in tasks.values()):
            images = torch.stack([self.picture(image) for image in inputs])
            scale = -(-_SMALLEST_DRAWING // images.shape[-1])
            images = images.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
        on_device = trainer.precision_plugin.convert_input(move_data_to_device(inputs, module.device))
        with trainer.precision_plugin.forward_context():
            predictions = module(on_device)
        columns: list[tuple[str, Tensor | None]] = []
        for name, task in tasks.items():
            picture = task.draw(images, task.predict(predictions[name]), scale).cpu()
            if len(picture):
                target = task.draw(images, targets[name], scale).cpu() if name in targets else None
                columns.append((f"{name}\ntarget", target))
                columns.append((f"{name}\nprediction", picture))
        if not columns:
            raise MisconfigurationException(
                f"PredictionPanels: none of the tasks {list(cast(nn.ModuleDict, module.tasks))} draws a picture; "
                "remove the callback, or implement render() in a task."
            )
        for i in range(len(inputs)):
            image = images[i] if len(images) else self.picture(inputs[i])
            size = (image.shape[-2], image.shape[-1])
            cells = [("input\n", image)]
            for label, pictures in columns:
                if pictures is None:
                    cells.append((label, torch.full((3, *size), 127, dtype=torch.uint8)))
                else:
                    cells.append((label, F.interpolate(pictures[i : i + 1], size=size, mode="nearest")[0]))
            yield cells
