"""Encoders taken apart into stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from lightning_mtl.nn.task_aware import TaskAwareEncoder


class StagedEncoder(TaskAwareEncoder):
    """Base of the architectures that work between the stages of a convolutional encoder.

    Args:
        encoder: Encoder with feature maps that can be taken apart: it has ``stages()``, the modules that lead from the
            input to the first map, from there to the second, and so on. :class:`~lightning_mtl.nn.TimmEncoder` has it
            for the convolutional models of timm.
        tasks: Names of the tasks.

    Raises:
        ValueError: If the features are no maps, or the encoder cannot be taken apart.
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__(encoder, tasks)
        name = type(self).__name__
        if self.base_spec.kind != "maps":
            raise ValueError(
                f"{name}: the encoder must give feature maps, got {self.base_spec.kind!r}; for timm encoders take "
                "features='maps'."
            )
        stages = getattr(encoder, "stages", None)
        if not callable(stages):
            raise ValueError(
                f"{name}: {type(encoder).__name__} cannot be taken apart; take TimmEncoder with a convolutional model, "
                "or give the encoder a method stages() with one module per feature map."
            )
        self.parts = cast("list[nn.Module]", list(stages()))
        if len(self.parts) != len(self.base_spec.channels):
            raise ValueError(
                f"{name}: stages() must give one module for each of the {len(self.base_spec.channels)} maps, got "
                f"{len(self.parts)}."
            )
        self.feature_spec = dict.fromkeys(self.task_names, self.base_spec)
