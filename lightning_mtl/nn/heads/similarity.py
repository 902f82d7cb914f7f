"""One head for classification and retrieval: the similarity to candidates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class SimilarityHead(nn.Module, Recorded):
    r"""Predict by the cosine to candidates, divided by a learned temperature.

    .. math:: P(y \mid x) \propto \exp\big(\cos(g(x), c_y) / \tau\big)

    with a linear map :math:`g`. The candidates :math:`c_y` are learned, one for each output, or, where they are given
    to ``forward``, the images under :math:`g` of features of the same encoder, such as those of class names, captions
    or answers; the same head then serves classification, retrieval and generation.

    Args:
        spec: The features to read, of kind ``"vector"``.
        out_channels: Number of learned candidates.
        dim: Dimension in which features and candidates are compared.
        init_tau: Temperature at the start.
        min_tau: Smallest temperature, so that logits stay bounded by ``1 / min_tau``.

    Shape:
        - features: ``(..., D)``; returns ``(..., out_channels)``.
        - candidates: ``(M, D)``, for all features; returns ``(..., M)``.

    Raises:
        ValueError: If the features are no vector, or an argument is not positive.

    Note:
        The temperature is learned as its logarithm. The smallest one is that of CLIP, not of the paper.

    Example:
        >>> import torch
        >>> head = SimilarityHead(FeatureSpec("vector", (8,)), out_channels=3)
        >>> head(torch.ones(2, 8)).shape, head(torch.ones(2, 8), candidates=torch.randn(5, 8)).shape
        (torch.Size([2, 3]), torch.Size([2, 5]))

    References:
        Li et al. *Uni-Perceiver v2: A Generalist Model for Large-Scale Vision and Vision-Language Tasks*. CVPR 2023.
        https://arxiv.org/abs/2211.09808
    """

    def __init__(
        self, spec: FeatureSpec, out_channels: int, dim: int = 128, init_tau: float = 0.07, min_tau: float = 0.01
    ) -> None:
        super().__init__()
        check_arguments(self, "vector", spec, out_channels)
        if dim < 1:
            raise ValueError(f"SimilarityHead: dim must be positive, got {dim}.")
        if not 0 < min_tau <= init_tau < math.inf:
            raise ValueError(
                f"SimilarityHead: init_tau must be finite and at least min_tau > 0, got {init_tau} and {min_tau}."
            )
        self.projection = nn.Linear(spec.channels[0], dim)
        self.candidates = nn.Parameter(torch.randn(out_channels, dim) / math.sqrt(dim))
        self.log_tau = nn.Parameter(torch.tensor(math.log(init_tau)))
        self.min_tau = min_tau

    @property
    def tau(self) -> Tensor:
        """The temperature now."""
        return self.log_tau.exp().clamp(min=self.min_tau)

    def forward(self, features: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Return the logits of the learned candidates, or of features given as candidates."""
        compared = self.candidates if candidates is None else self.projection(candidates)
        return F.normalize(self.projection(features), dim=-1) @ F.normalize(compared, dim=-1).T / self.tau
