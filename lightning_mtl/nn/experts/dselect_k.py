"""A sparse, differentiable gate: k experts out of E."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.experts.base import ExpertCallable, at_least_float32, build_experts, mix, pooled
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import Features, TaskAwareEncoder, parameters_of

_TINY = 1e-6  # inside the logarithm of the entropy and below the division, as values of 0 are exact here


def smooth_step(values: Tensor, width: float = 1.0) -> Tensor:
    r"""Step from exactly 0 to exactly 1 along a cubic.

    .. math:: S(t) = -\tfrac{2}{\gamma^3} t^3 + \tfrac{3}{2\gamma} t + \tfrac12 \quad (|t| \le \gamma / 2)

    Args:
        values: Where to evaluate it.
        width: Length :math:`\gamma` of the interval in which it rises.

    Shape:
        - values: any; returns the same.

    References:
        Hazimeh et al. *DSelect-k*. NeurIPS 2021, Eq. 5. https://arxiv.org/abs/2106.03760
    """
    inside = values.clamp(-width / 2, width / 2)
    return -2 / width**3 * inside**3 + 3 / (2 * width) * inside + 0.5


class DSelectKGate(nn.Module):
    r"""Choose k experts by binary codes, for every sample or once for all.

    Each of k selectors encodes an expert in :math:`m = \lceil \log_2 E \rceil` smooth bits :math:`S(z_j)`; expert i has
    the weight :math:`r(z)_i = \prod_j S(z_j)^{b_{ij}} (1 - S(z_j))^{1 - b_{ij}}` with the bits :math:`b_{ij}` of its
    number. A softmax weighs the selectors. Once the bits have left the middle, all but k weights are exactly zero.

    Args:
        in_features: Width of the pooled features.
        num_experts: Number of experts E.
        k: Number of selectors.
        width: Interval of :func:`smooth_step`.
        static: One choice for all samples; otherwise the codes are linear functions of the sample.

    Shape:
        - pooled: ``(B, D)``; returns weights ``(B, E)`` and what the selectors chose, ``(B, k, E)``.
    """

    codes: Tensor

    def __init__(self, in_features: int, num_experts: int, k: int, width: float, static: bool) -> None:
        super().__init__()
        self.k = k
        self.width = width
        self.num_bits = max(1, math.ceil(math.log2(num_experts)))
        bits = (torch.arange(num_experts)[:, None] >> torch.arange(self.num_bits)) & 1
        self.register_buffer("codes", bits.bool(), persistent=False)
        small = width / 100
        self.static = static
        if static:
            self.bit_logits = nn.Parameter(torch.empty(k, self.num_bits).uniform_(-small, small))
            self.selector_logits = nn.Parameter(torch.empty(k).uniform_(-small, small))
        else:
            self.bits = nn.Linear(in_features, k * self.num_bits, bias=False)
            self.selectors = nn.Linear(in_features, k)
            nn.init.uniform_(self.bits.weight, -small, small)

    def forward(self, pooled_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the experts and the choice of every selector."""
        batch = len(pooled_features)
        if self.static:
            z = self.bit_logits.expand(batch, -1, -1)
            importance = self.selector_logits.expand(batch, -1)
        else:
            z = self.bits(pooled_features).view(batch, self.k, self.num_bits)
            importance = self.selectors(pooled_features)
        on = smooth_step(at_least_float32(z), self.width)[:, :, None, :]
        chosen = torch.where(self.codes, on, 1 - on).prod(dim=-1)
        weights = (at_least_float32(importance).softmax(dim=1)[:, :, None] * chosen).sum(dim=1)
        return weights, chosen


class DSelectK(TaskAwareEncoder):
    r"""Mix k of the shared experts for every task, chosen by a differentiable gate (Hazimeh et al., NeurIPS 2021).

    As in :class:`MMoE`, but the gates become sparse: see :class:`DSelectKGate`. Two terms are added to the training
    loss (``auxiliary_loss``): the entropy of the selectors, which drives the bits out of the middle, and, if the number
    of experts is no power of two, :math:`1 / \sum_{i \le E} r(z)_i`, which keeps codes off experts that do not exist.

    Args:
        encoder: Encoder below the experts.
        tasks: Names of the tasks.
        num_experts: Number of experts E, at least 2.
        k: Largest number of experts of a task, at most E.
        expert: Callable ``FeatureSpec -> nn.Module`` that builds an expert; None takes one layer as wide as the
            features (:class:`MLPExpert`, or :class:`ConvExpert` for maps).
        static: One choice per task; otherwise every sample has its own (the paper's per-example gating).
        width: Length of the interval in which a bit is undecided; 1 in the paper.
        entropy: Factor of the entropy term.
        capacity: Factor of the term that keeps codes off missing experts.

    Shape:
        - inputs: those of ``encoder``; returns task -> features of the expert's kind.

    Raises:
        ValueError: If a number does not fit, or the experts do not fit the encoder.

    Note:
        All experts are evaluated; the sparsity shows what a task uses and saves nothing by itself. LibMTL computes the
        gradient of these two terms inside ``forward``; here they are ordinary parts of the loss.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import MLPEncoder
        >>> encoder = DSelectK(MLPEncoder(8, [16]), ["click", "buy"], num_experts=4, k=2)
        >>> {task: tuple(features.shape) for task, features in encoder(torch.zeros(2, 8)).items()}
        {'click': (2, 16), 'buy': (2, 16)}

    References:
        Hazimeh et al. *DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to Multi-Task
        Learning*. NeurIPS 2021, Sec. 3. https://arxiv.org/abs/2106.03760
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[str],
        num_experts: int = 4,
        k: int = 2,
        expert: ExpertCallable | None = None,
        static: bool = False,
        width: float = 1.0,
        entropy: float = 1e-6,
        capacity: float = 1.0,
    ) -> None:
        super().__init__(encoder, tasks)
        if not 1 <= k <= num_experts or num_experts < 2:
            raise ValueError(f"DSelectK: 1 <= k <= num_experts and num_experts >= 2 must hold, got {k}, {num_experts}.")
        if width <= 0:
            raise ValueError(f"DSelectK: width must be positive, got {width}.")
        if entropy < 0 or capacity < 0:
            raise ValueError(f"DSelectK: entropy and capacity must not be negative, got {entropy} and {capacity}.")
        self.encoder = encoder
        self.experts = build_experts("DSelectK", "num_experts", expert, self.base_spec, num_experts)
        features = self.base_spec.channels[-1]
        self.gates = nn.ModuleDict(
            {task: DSelectKGate(features, num_experts, k, width, static) for task in self.task_names}
        )
        self.entropy = entropy
        self.capacity = capacity if num_experts & (num_experts - 1) else 0.0
        self.feature_spec = dict.fromkeys(self.task_names, cast(FeatureSpec, self.experts[0].feature_spec))
        self._chosen: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chosen": []}  # what belongs to a pass is not copied

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder and the experts."""
        return parameters_of([self.encoder, self.experts])

    def auxiliary_loss(self) -> Tensor:
        """Return the two regularizing terms for the last pass.

        Raises:
            RuntimeError: If there was no pass.
        """
        if not self._chosen:
            raise RuntimeError("DSelectK: auxiliary_loss() must follow a forward pass.")
        chosen = torch.cat(self._chosen)
        entropy = -(chosen * (chosen + _TINY).log()).sum(dim=-1)
        loss = self.entropy * entropy.sum(dim=1).mean()
        if self.capacity:
            loss = loss + self.capacity * (1 / (chosen.sum(dim=-1) + _TINY) - 1).sum(dim=1).mean()
        return loss * len(self.task_names)

    def forward(self, inputs: Tensor) -> dict[str, Features]:
        """Return the mixture of every task."""
        features = self.encoder(inputs)
        readings = [expert(features) for expert in self.experts]
        vector = pooled(features, self.base_spec.kind)
        mixtures = {}
        self._chosen = []
        for task, gate in self.gates.items():
            weights, chosen = gate(vector)
            mixtures[task] = mix(weights, readings)
            self._chosen.append(chosen)
        return mixtures
