"""Distillation between the features of one network at two widths."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def ci_kd_loss(
    parent: Tensor, child: Tensor, mode: Literal["slice", "gram"] = "slice", normalize: bool = True
) -> Tensor:
    r"""Distance of a narrow network's features from those of the wide network that it is part of.

    ``"slice"`` compares the first channels of the parent with the child's, as the narrow network computes a part of
    what the wide one does: :math:`\frac{1}{B} \sum_b \lVert \hat p_b - \hat c_b \rVert^2` with flattened features that
    have unit norm per sample. ``"gram"`` compares how similar the samples of a batch are to each other: the mean
    squared difference of the :math:`B \times B` matrices of cosine similarities.

    Args:
        parent: Features of the wide network; its gradient is stopped.
        child: Features of the narrow network, with as many channels or fewer.
        mode: What is compared.
        normalize: Whether samples are scaled to unit norm. Without it ``"slice"`` is the mean squared error and
            ``"gram"`` compares inner products.

    Shape:
        - parent: ``(B, D, ...)``; child: ``(B, d, ...)`` with d at most D for ``"slice"``; returns a scalar.

    Raises:
        ValueError: If the shapes do not fit.

    Note:
        The body of the paper was not at hand; both forms are this package's reading of its abstract, "the encoder
        features must not depend on the configuration".

    Example:
        >>> import torch
        >>> ci_kd_loss(torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(2.)

    References:
        Aich, Schulter, Roy-Chowdhury, Chandraker, Suh. *Efficient Controllable Multi-Task Architectures*. ICCV 2023.
        https://arxiv.org/abs/2308.11744.
    """
    fits = parent.ndim == child.ndim >= 2 and len(parent) == len(child)
    if mode == "slice":
        fits = fits and child.shape[1] <= parent.shape[1] and parent.shape[2:] == child.shape[2:]
    if not fits:
        raise ValueError(
            f"ci_kd_loss: child must be the parent's features with as many channels or fewer, got "
            f"{tuple(child.shape)} for {tuple(parent.shape)}."
        )
    parent = parent.detach()
    if mode == "slice":
        parent = parent[:, : child.shape[1]]
    wide, narrow = parent.flatten(1), child.flatten(1)
    if normalize:
        wide, narrow = F.normalize(wide, dim=1), F.normalize(narrow, dim=1)
    if mode == "gram":
        return F.mse_loss(narrow @ narrow.T, wide @ wide.T)
    if not normalize:
        return F.mse_loss(narrow, wide)
    return (narrow - wide).square().sum(dim=1).mean()
