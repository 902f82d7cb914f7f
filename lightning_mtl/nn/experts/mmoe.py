"""Multi-gate mixture-of-experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lightning_mtl.nn.experts.base import ExpertCallable, Gate, build_experts, mix, pooled
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import Features, TaskAwareEncoder, parameters_of


class MMoE(TaskAwareEncoder):
    r"""Mix shared experts with one gate per task (Ma et al., KDD 2018).

    .. math:: h_t = \sum_{e=1}^{E} g_{t,e}(x)\, f_e(x), \qquad g_t(x) = \mathrm{softmax}(W_t x + b_t)

    where x are the features of the encoder, :math:`f_e` the experts and :math:`g_t` the gate of task t. Vectors, tokens
    and lists of maps are mixed alike; a gate reads the mean over tokens, or over the coarsest map, and gives one weight
    per expert and sample.

    Args:
        encoder: Encoder below the experts; :class:`torch.nn.Identity`-like encoders with a ``feature_spec`` let the
            experts read the inputs.
        tasks: Names of the tasks.
        num_experts: Number of experts E.
        expert: Callable ``FeatureSpec -> nn.Module`` that builds an expert; None takes one layer as wide as the
            features (:class:`MLPExpert`, or :class:`ConvExpert` for maps).
        gate_dropout: Probability of leaving an expert out of a task's mixture in training.

    Shape:
        - inputs: those of ``encoder``; returns task -> features of the expert's kind.

    Raises:
        ValueError: If a number does not fit, or the experts do not fit the encoder.

    Note:
        The gates belong to their tasks; encoder and experts are shared.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import MLPEncoder
        >>> encoder = MMoE(MLPEncoder(8, [16]), ["click", "buy"], num_experts=3)
        >>> {task: tuple(features.shape) for task, features in encoder(torch.zeros(2, 8)).items()}
        {'click': (2, 16), 'buy': (2, 16)}

    References:
        Ma et al. *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*. KDD 2018,
        Eq. 6 and 7. https://doi.org/10.1145/3219819.3220007
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[str],
        num_experts: int = 4,
        expert: ExpertCallable | None = None,
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__(encoder, tasks)
        self.encoder = encoder
        self.experts = build_experts("MMoE", "num_experts", expert, self.base_spec, num_experts)
        width = self.base_spec.channels[-1]
        self.gates = nn.ModuleDict({task: Gate(width, num_experts, gate_dropout) for task in self.task_names})
        self.feature_spec = dict.fromkeys(self.task_names, cast(FeatureSpec, self.experts[0].feature_spec))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder and the experts."""
        return parameters_of([self.encoder, self.experts])

    def forward(self, inputs: Tensor) -> dict[str, Features]:
        """Return the mixture of every task."""
        features = self.encoder(inputs)
        readings = [expert(features) for expert in self.experts]
        vector = pooled(features, self.base_spec.kind)
        return {task: mix(gate(vector), readings) for task, gate in self.gates.items()}
