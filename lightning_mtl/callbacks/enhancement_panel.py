"""What a learned enhancement does to the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_mtl.callbacks.panels import Panels, Row
from lightning_mtl.nn.feature_enhancement import FeatureEnhancement


class EnhancementPanel(Panels):
    """Show a few validation images before and after their enhancement, and log the size of what it adds.

    After a validation the samples seen first are drawn, one row a sample: the input, and input and enhanced image each
    stretched to 0..1, as the enhancement knows no range. The picture goes to every logger that takes images; if there
    is none, it becomes a PNG file in the folder ``panels`` of the run. In training ``enhancement/residual_mean`` and
    ``enhancement/residual_std`` are logged at the Trainer's cadence: mean and standard deviation of what is added to
    the first images of a batch. The values are computed again, so it works with compiled networks; weights and random
    states stay as they are. It works with any module that has a :class:`~lightning_mtl.nn.FeatureEnhancement` inside,
    such as an encoder behind :class:`~lightning_mtl.nn.FeatEnHancer`.

    Args:
        num_samples: How many samples to draw, and how many images of a batch to measure.
        every_n_epochs: Draw after the validation of every n-th epoch, from the first one on.
        mean: Mean that was subtracted from the channels of the input; ImageNet's by default. None for inputs in [0, 1].
        std: Standard deviation that the channels of the input were divided by; None for inputs in [0, 1].
        name: Name of the picture in the loggers.

    Raises:
        ValueError: If a number is not positive, or only one of ``mean`` and ``std`` is given.
        MisconfigurationException: If the module has no enhancement, or the batches hold no images.

    Note:
        With several processes the samples are those of the first one. In sanity checks and in a ``fast_dev_run``
        nothing is drawn.
    """

    def __init__(
        self,
        num_samples: int = 4,
        every_n_epochs: int = 1,
        mean: Sequence[float] | None = (0.485, 0.456, 0.406),
        std: Sequence[float] | None = (0.229, 0.224, 0.225),
        name: str = "enhancement",
    ) -> None:
        super().__init__(num_samples, every_n_epochs, mean, std, name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there is an enhancement, and forget the samples of another data set."""
        _enhancement(pl_module)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log mean and standard deviation of the residual."""
        if trainer.global_step % max(cast(Any, trainer).log_every_n_steps, 1):
            return
        images = _images(batch)[: self.num_samples]
        residual = self._enhanced(trainer, pl_module, images) - images
        values = {"enhancement/residual_mean": residual.mean(), "enhancement/residual_std": residual.std()}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1, sync_dist=trainer.world_size > 1)

    def rows(
        self, trainer: pl.Trainer, module: pl.LightningModule, inputs: Any, targets: Mapping[str, Any]
    ) -> Iterator[Row]:
        """Yield the input and both stretched images of every sample."""
        pictures = [self.picture(image) for image in inputs]
        after = self._enhanced(trainer, module, inputs.to(module.device)).cpu()
        for picture, before, enhanced in zip(pictures, inputs, after, strict=True):
            yield [("input\n", picture), ("input\nstretched", _stretched(before)), ("enhanced\n", _stretched(enhanced))]

    def _enhanced(self, trainer: pl.Trainer, module: pl.LightningModule, images: Tensor) -> Tensor:
        plugin = trainer.precision_plugin
        with torch.no_grad(), plugin.forward_context():
            enhanced: Tensor = _enhancement(module)(plugin.convert_input(images))
        return enhanced.to(images.dtype)


def _enhancement(module: torch.nn.Module) -> FeatureEnhancement:
    found = next((child for child in module.modules() if isinstance(child, FeatureEnhancement)), None)
    if found is None:
        raise MisconfigurationException(
            f"EnhancementPanel: the module must have a FeatureEnhancement inside, got {type(module).__name__} without "
            "one; put FeatEnHancer around its encoder, or remove the callback."
        )
    return found


def _images(batch: Any) -> Tensor:
    """Return the images of a batch, or of the first data set in it."""
    if isinstance(batch, Mapping):
        batch = next((part for part in batch.values() if part is not None), None)
    images = batch[0] if isinstance(batch, tuple | list) and batch else None
    if not isinstance(images, Tensor):
        raise MisconfigurationException(
            f"EnhancementPanel: batches must be (images, targets), got {type(batch).__name__}; remove the callback."
        )
    return images


def _stretched(image: Tensor) -> Tensor:
    image = image.float()
    low, high = image.min(), image.max()
    picture: Tensor = (255 * (image - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8)
    return picture.expand(3, -1, -1)
