"""A network's change since initialization, scaled: the knob between lazy and rich training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_mtl.nn.recorded import Recorded


class CenteredOutputScale(nn.Module, Recorded):
    r"""Predict with what a network has learned since initialization, times a constant (Chizat et al., NeurIPS 2019).

    .. math:: \hat y(x) = \alpha \, (f(x; \theta) - f(x; \theta_0))

    With a large :math:`\alpha` a small change of the parameters is enough to fit the targets: the network stays close
    to its linearization at :math:`\theta_0` (lazy), features hardly move, and where the tangent kernel at
    initialization fits the targets badly, generalization comes late (grokking) or not at all. A small :math:`\alpha`
    makes features move early (rich). Scale the learning rate of plain gradient descent with :func:`scaled_lr`.

    As the encoder of a :class:`~lightning_mtl.MultiTaskModule` it should hold the whole network, with
    ``torch.nn.Identity`` as the tasks' head: subtracting the initial features alone would not centre the prediction.

    Args:
        module: Network to wrap. Its outputs may be a tensor, a sequence or a mapping of tensors.
        alpha: Output scale, positive. 1 with ``center=False`` is the network itself.
        center: Subtract the output at initialization. Without it a large ``alpha`` starts with huge outputs, and what
            one then sees is their decay rather than laziness.

    Shape:
        - inputs: whatever ``module`` takes; returns what it returns.

    Raises:
        ValueError: If ``alpha`` is not positive.

    Note:
        The initial network is a frozen copy, part of the ``state_dict`` and evaluated in ``eval`` mode. A network whose
        ``train`` mode differs from it (dropout, batch statistics) does not start at exactly zero in training.

        With Adam the output scale, the learning rate and weight decay are confounded, and :func:`scaled_lr` does not
        apply; look at how far the kernel moves (:class:`~lightning_mtl.callbacks.GrokkingDetector`).

    Example:
        >>> scaled = CenteredOutputScale(nn.Linear(3, 2), alpha=10.0)
        >>> scaled(torch.ones(1, 3)).abs().max().item()
        0.0

    References:
        Chizat, Oyallon, Bach. *On Lazy Training in Differentiable Programming*. NeurIPS 2019, Eq. 1 and Sec. 2.
        https://arxiv.org/abs/1812.07956

        Kumar, Bordelon, Gershman, Pehlevan. *Grokking as the Transition from Lazy to Rich Training Dynamics*. ICLR
        2024. https://arxiv.org/abs/2310.06110
    """

    def __init__(self, module: nn.Module, alpha: float = 1.0, center: bool = True) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"CenteredOutputScale: alpha must be positive, got {alpha}.")
        self.module = module
        self.alpha = alpha
        self.center = center
        self.initial = copy.deepcopy(module).requires_grad_(False) if center else None
        self.feature_spec = getattr(module, "feature_spec", None)

    def forward(self, inputs: Any) -> Any:
        """Return the scaled change of the network's output."""
        output = self.module(inputs)
        if self.initial is None:
            return _combine(output, None, self.alpha)
        self.initial.eval()
        with torch.no_grad():
            start = self.initial(inputs)
        self.initial.train(self.training)  # Lightning warns of modules that start in eval mode
        return _combine(output, start, self.alpha)

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        return f"alpha={self.alpha}, center={self.center}"


def _combine(output: Any, start: Any, alpha: float) -> Any:
    if isinstance(output, Mapping):
        return {key: _combine(value, None if start is None else start[key], alpha) for key, value in output.items()}
    if isinstance(output, list | tuple):
        starts = [None] * len(output) if start is None else start
        return [_combine(value, first, alpha) for value, first in zip(output, starts, strict=True)]
    return alpha * (output if start is None else output - start)


def scaled_lr(base_lr: float, alpha: float) -> float:
    r"""Return the learning rate of plain gradient descent for an output scale, :math:`\eta / \alpha^2`.

    The tangent kernel of :math:`\alpha f` is :math:`\alpha^2` times that of :math:`f`; dividing the learning rate by it
    keeps the time in which the training set is fitted, so that runs with different scales can be compared.

    Args:
        base_lr: Learning rate for ``alpha`` 1.
        alpha: Output scale, positive.

    Raises:
        ValueError: If ``alpha`` is not positive.

    Example:
        >>> scaled_lr(0.1, alpha=0.5)
        0.4
    """
    if alpha <= 0:
        raise ValueError(f"scaled_lr: alpha must be positive, got {alpha}.")
    return base_lr / alpha**2
