"""Input, target and prediction of every task side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_mtl.tasks.base import Task

_SMALLEST_CELL = 96  # pixels; "prediction" fits above it
_SMALLEST_DRAWING = 320  # pixels; names and scores of boxes can be read
_GAP = 4
_LINE = 12


class PredictionPanels(Callback):
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
        super().__init__()
        for argument, value in (("num_samples", num_samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"PredictionPanels: {argument} must be positive, got {value}.")
        if (mean is None) != (std is None) or (mean is not None and std is not None and len(mean) != len(std)):
            raise ValueError(
                f"PredictionPanels: mean and std must have one number per channel, or both be None, got {mean}, {std}."
            )
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.mean = mean
        self.std = std
        self.name = name
        self._samples: list[tuple[Any, Mapping[str, Any]]] = []
        self._missing = num_samples

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there are tasks, and forget the samples of another data set."""
        if not isinstance(getattr(pl_module, "tasks", None), nn.ModuleDict):
            raise MisconfigurationException(
                "PredictionPanels: the module must have tasks in a ModuleDict 'tasks', got "
                f"{type(pl_module).__name__}; use MultiTaskModule, or remove the callback."
            )
        self._samples, self._missing = [], self.num_samples

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first samples."""
        if self._missing == 0 or trainer.sanity_checking:
            return
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Mapping)):
            raise MisconfigurationException(
                "PredictionPanels: validation batches must be (images, {task: target}), got "
                f"{type(batch).__name__}; remove the callback, or give the validation data in that form."
            )
        inputs, targets = batch
        count = min(len(inputs), self._missing)
        kept = move_data_to_device((_first(inputs, count), _first(dict(targets), count)), "cpu")
        self._samples.append(kept)
        self._missing -= count

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Predict, draw and log."""
        due = trainer.state.fn != "fit" or trainer.current_epoch % self.every_n_epochs == 0
        if trainer.sanity_checking or trainer.fast_dev_run or not due:  # type: ignore[attr-defined]
            return
        folder = trainer.log_dir or trainer.default_root_dir  # exchanged between the processes, so all ask for it
        if not self._samples:
            return
        with isolate_rng(), torch.no_grad(), _evaluating(pl_module):
            rows = [row for sample in self._samples for row in self._rows(trainer, pl_module, *sample)]
        if trainer.is_global_zero:
            self._log(trainer, _stack(rows), folder)

    # ------------------------------------------------------------------ drawing
    def _rows(
        self, trainer: pl.Trainer, module: pl.LightningModule, inputs: Any, targets: Mapping[str, Any]
    ) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield the labelled cells of every sample, all of one size."""
        tasks = {name: cast(Task, child) for name, child in cast(nn.ModuleDict, module.tasks).items()}
        images, scale = torch.empty((0, 3, 1, 1), dtype=torch.uint8), 1
        if any(task.draws_on_input for task in tasks.values()):
            images = torch.stack([self._picture(image) for image in inputs])
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
            image = images[i] if len(images) else self._picture(inputs[i])
            size = (image.shape[-2], image.shape[-1])
            cells = [("input\n", image)]
            for label, pictures in columns:
                if pictures is None:
                    cells.append((label, torch.full((3, *size), 127, dtype=torch.uint8)))
                else:
                    cells.append((label, F.interpolate(pictures[i : i + 1], size=size, mode="nearest")[0]))
            yield cells

    def _picture(self, image: Any) -> Tensor:
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise MisconfigurationException(
                f"PredictionPanels: inputs must be images with 1 or 3 channels, got {got}; remove the callback."
            )
        image = image.detach().float()
        if self.mean is not None and self.std is not None:
            if len(self.mean) != image.shape[0]:
                raise MisconfigurationException(
                    f"PredictionPanels: mean and std must have {image.shape[0]} numbers for these images, got "
                    f"{len(self.mean)}; pass those of the data, or mean=None and std=None for images in [0, 1]."
                )
            image = image * torch.tensor(self.std).view(-1, 1, 1) + torch.tensor(self.mean).view(-1, 1, 1)
        picture: Tensor = (255 * image.clamp(0, 1)).round().to(torch.uint8).expand(3, -1, -1)
        return picture

    def _log(self, trainer: pl.Trainer, picture: Tensor, folder: str) -> None:
        taken = False
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            log_image = getattr(logger, "log_image", None)
            if callable(add_image):
                add_image(self.name, picture, trainer.global_step)
                taken = True
            elif callable(log_image):
                log_image(key=self.name, images=[picture.movedim(0, -1).numpy()], step=trainer.global_step)
                taken = True
        if not taken:
            from PIL import Image

            folder = os.path.join(folder, "panels")
            os.makedirs(folder, exist_ok=True)
            path = os.path.join(folder, f"{self.name}-epoch={trainer.current_epoch}-step={trainer.global_step}.png")
            Image.fromarray(picture.movedim(0, -1).numpy()).save(path)


def _first(value: Any, count: int) -> Any:
    """Return the first samples of a batch, in a tensor, a list of samples, or a mapping of these."""
    if isinstance(value, Mapping):
        return {key: _first(item, count) for key, item in value.items()}
    return value[:count].clone() if isinstance(value, Tensor) else value[:count]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _stack(rows: list[list[tuple[str, Tensor]]]) -> Tensor:
    """Put rows of labelled cells below one header, ``(3, H, W)`` uint8."""
    from PIL import Image, ImageDraw

    height = max(cell.shape[-2] for row in rows for _, cell in row)
    width = max(cell.shape[-1] for row in rows for _, cell in row)
    factor = -(-_SMALLEST_CELL // width)
    height, width = factor * height, factor * width
    size = (len(rows[0]) * (width + _GAP), 2 * _LINE + _GAP + len(rows) * (height + _GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for j, (label, _) in enumerate(rows[0]):
        for line, text in enumerate(label.split("\n")):
            draw.text((j * (width + _GAP), line * _LINE), text, fill="black")
    for i, row in enumerate(rows):
        for j, (_, cell) in enumerate(row):
            enlarged = cell.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
            corner = (j * (width + _GAP), 2 * _LINE + _GAP + i * (height + _GAP))
            canvas.paste(Image.fromarray(enlarged.movedim(0, -1).numpy()), corner)
    raw = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
    return raw.view(canvas.height, canvas.width, 3).movedim(-1, 0).contiguous()
