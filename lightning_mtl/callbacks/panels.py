"""Pictures of the same few validation samples after every validation."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_mtl.functional.modes import modes_kept

_SMALLEST_CELL = 96  # pixels; "prediction" fits above it
_GAP = 4
_LINE = 12

Row = list[tuple[str, Tensor]]
"""Labelled cells ``(3, H, W)`` uint8 of one sample, all of one size; a line break parts the label."""


class Panels(Callback, ABC):
    """Base of the callbacks that draw the validation samples seen first, one row a sample, after a validation.

    The picture goes to every logger that takes images (TensorBoard; Weights & Biases and others with ``log_image``); if
    there is none, it becomes a PNG file in the folder ``panels`` of the run. Weights, running statistics, modes and
    random states stay as they are. Subclasses implement :meth:`rows`.

    Args:
        num_samples: How many samples to draw.
        every_n_epochs: Draw after the validation of every n-th epoch, from the first one on.
        mean: Mean that was subtracted from the channels of the input; None for inputs in [0, 1].
        std: Standard deviation that the channels of the input were divided by; None for inputs in [0, 1].
        name: Name of the picture in the loggers.

    Raises:
        ValueError: If a number is not positive, or only one of ``mean`` and ``std`` is given.
        MisconfigurationException: If the batches hold no images.
    """

    def __init__(
        self,
        num_samples: int,
        every_n_epochs: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        name: str,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for argument, value in (("num_samples", num_samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"{owner}: {argument} must be positive, got {value}.")
        if (mean is None) != (std is None) or (mean is not None and std is not None and len(mean) != len(std)):
            raise ValueError(
                f"{owner}: mean and std must have one number per channel, or both be None, got {mean}, {std}."
            )
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.mean = mean
        self.std = std
        self.name = name
        self._samples: list[tuple[Any, Mapping[str, Any]]] = []
        self._missing = num_samples

    @abstractmethod
    def rows(
        self, trainer: pl.Trainer, module: pl.LightningModule, inputs: Any, targets: Mapping[str, Any]
    ) -> Iterator[Row]:
        """Yield the cells of every sample; called in evaluation mode and without gradients.

        Args:
            trainer: The Trainer.
            module: Its module.
            inputs: Some samples, on the CPU.
            targets: Task -> target of these samples, on the CPU.
        """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the samples of another data set."""
        self._samples, self._missing = [], self.num_samples

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first samples."""
        if self._missing == 0 or trainer.sanity_checking:
            return
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Mapping)):
            raise MisconfigurationException(
                f"{type(self).__name__}: validation batches must be (images, {{task: target}}), got "
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
        with isolate_rng(), torch.no_grad(), modes_kept(pl_module):
            pl_module.eval()
            rows = [row for sample in self._samples for row in self.rows(trainer, pl_module, *sample)]
        if trainer.is_global_zero:
            self._log(trainer, _stack(rows), folder)

    def picture(self, image: Any) -> Tensor:
        """Return an input as a picture ``(3, H, W)`` uint8."""
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise MisconfigurationException(
                f"{type(self).__name__}: inputs must be images with 1 or 3 channels, got {got}; remove the callback."
            )
        image = image.detach().float()
        if self.mean is not None and self.std is not None:
            if len(self.mean) != image.shape[0]:
                raise MisconfigurationException(
                    f"{type(self).__name__}: mean and std must have {image.shape[0]} numbers for these images, got "
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


def _stack(rows: list[Row]) -> Tensor:
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
