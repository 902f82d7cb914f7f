"""Features that every task sees through a rotation of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class RotatedFeatures(nn.Module, Recorded):
    r"""Give every task k the features of an encoder turned by an orthogonal matrix, :math:`r_k = R_k z`.

    The rotations start at the identity. Task losses do not train them: their gradient stops at :math:`R_k`, and
    :class:`~lightning_mtl.balancers.RotoGrad` trains them so that the tasks agree in :math:`z`.

    Args:
        encoder: Encoder with pooled features (``feature_spec`` of kind ``"vector"``).
        tasks: Names of the tasks.

    Shape:
        - inputs: those of ``encoder``; returns task -> ``(B, D)``.

    Raises:
        ValueError: If the encoder's features are no vectors.

    Example:
        >>> from lightning_mtl.nn import MLPEncoder
        >>> encoder = RotatedFeatures(MLPEncoder(8, [4]), ["a", "b"])
        >>> {task: tuple(features.shape) for task, features in encoder(torch.zeros(2, 8)).items()}
        {'a': (2, 4), 'b': (2, 4)}

    References:
        Javaloy, Valera. *RotoGrad: Gradient Homogenization in Multitask Learning*. ICLR 2022, Sec. 3.2.
        https://arxiv.org/abs/2103.02631
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        spec = getattr(encoder, "feature_spec", None)
        if not isinstance(spec, FeatureSpec) or spec.kind != "vector":
            raise ValueError(
                f"RotatedFeatures: {type(encoder).__name__} must give pooled features (feature_spec of kind 'vector'), "
                f"got {spec}; for timm encoders take features='pooled'."
            )
        width = spec.channels[0]
        self.encoder = encoder
        self.rotations = nn.ModuleDict()
        for task in tasks:
            rotation = orthogonal(nn.Linear(width, width, bias=False), orthogonal_map="matrix_exp")
            rotation.weight = torch.eye(width)
            self.rotations[task] = rotation
        self.feature_spec = dict.fromkeys(tasks, spec)
        self.unrotated: list[Tensor] = []
        """Features before rotation of the training passes since the balancer last looked."""

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder, which all tasks share; the rotations belong to one task each."""
        return list(self.encoder.parameters())

    def rotation(self, task: str) -> Tensor:
        """Return the orthogonal matrix of a task, ``(D, D)``, with its graph."""
        return cast(Tensor, self.rotations[task].weight)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the features of every task."""
        features = self.encoder(inputs)
        if self.training and features.requires_grad:
            self.unrotated = [features]
        return {task: F.linear(features, self.rotation(task).detach()) for task in self.rotations}
