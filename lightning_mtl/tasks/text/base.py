"""What the tasks on whole texts share."""

from __future__ import annotations

from torch import nn

from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.supervised import SampleTask


class TextTask(SampleTask):
    """A task with one prediction per text: linear on its vector, or on its first token where an encoder gives all."""

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a linear head on the vector or on the first token."""
        from lightning_mtl.nn import FirstTokenHead

        return FirstTokenHead(spec, out_channels) if spec.kind == "tokens" else super().default_head(spec, out_channels)
