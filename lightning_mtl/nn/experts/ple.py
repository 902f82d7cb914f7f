"""Customized gate control, and its stack: progressive layered extraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lightning_mtl.nn.experts.base import ExpertCallable, Gate, build_experts, mix, pooled
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import Features, TaskAwareEncoder, parameters_of


class CGCLayer(nn.Module):
    r"""One layer of experts of the tasks' own and of shared ones.

    Args:
        spec: The features that the experts read.
        tasks: Names of the tasks.
        shared_experts: Number of shared experts.
        task_experts: Number of experts of every task.
        expert: Builds an expert; None takes the default.
        shared_gate: Whether the layer has a shared output too, for a layer above it.
        owner: Name of the class that is built, for messages.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        tasks: Sequence[str],
        shared_experts: int,
        task_experts: int,
        expert: ExpertCallable | None,
        shared_gate: bool,
        owner: str,
    ) -> None:
        super().__init__()
        self.kind = spec.kind
        self.shared = build_experts(owner, "shared_experts", expert, spec, shared_experts)
        self.own = nn.ModuleDict(
            {task: build_experts(owner, "task_experts", expert, spec, task_experts) for task in tasks}
        )
        width = spec.channels[-1]
        self.gates = nn.ModuleDict({task: Gate(width, task_experts + shared_experts) for task in tasks})
        self.shared_gate = Gate(width, len(tasks) * task_experts + shared_experts) if shared_gate else None
        self.feature_spec = cast(FeatureSpec, self.shared[0].feature_spec)

    def forward(self, features: dict[str, Features], shared: Features) -> tuple[dict[str, Features], Features | None]:
        """Return the mixture of every task, and the shared one if there is a layer above."""
        common = [expert(shared) for expert in self.shared]
        own = {
            task: [expert(features[task]) for expert in cast(nn.ModuleList, experts)]
            for task, experts in self.own.items()
        }
        mixed = {
            task: mix(gate(pooled(features[task], self.kind)), [*own[task], *common])
            for task, gate in self.gates.items()
        }
        if self.shared_gate is None:
            return mixed, None
        everything = [reading for readings in own.values() for reading in readings] + common
        return mixed, mix(self.shared_gate(pooled(shared, self.kind)), everything)


class PLE(TaskAwareEncoder):
    r"""Give every task experts of its own beside shared ones, in several layers (Tang et al., RecSys 2020).

    A layer (CGC, customized gate control) mixes for task t its own experts :math:`f_{t,i}` and the shared ones
    :math:`f_{s,i}`, and in all but the last layer a shared state of all experts:

    .. math::
        h_t = \mathrm{softmax}(W_t x_t) \cdot [f_{t,1}(x_t), \dots, f_{s,1}(x_s), \dots], \qquad
        h_s = \mathrm{softmax}(W_s x_s) \cdot [f_{1,1}(x_1), \dots, f_{K,1}(x_K), \dots, f_{s,1}(x_s), \dots]

    In the first layer :math:`x_t = x_s` are the features of the encoder.

    Args:
        encoder: Encoder below the experts.
        tasks: Names of the tasks.
        num_layers: Number of layers; 1 is the paper's CGC, see :class:`CGC`.
        shared_experts: Number of shared experts in every layer.
        task_experts: Number of experts of every task in every layer.
        expert: Callable ``FeatureSpec -> nn.Module`` that builds an expert; None takes one layer as wide as the
            features (:class:`MLPExpert`, or :class:`ConvExpert` for maps).

    Shape:
        - inputs: those of ``encoder``; returns task -> features of the expert's kind.

    Raises:
        ValueError: If a number does not fit, or the experts do not fit the encoder.

    Note:
        Below the last layer every expert trains for every task, through the shared state; in the last layer the experts
        of a task belong to it alone. LibMTL's class of this name keeps no shared state; this one follows the
        paper.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import MLPEncoder
        >>> encoder = PLE(MLPEncoder(8, [16]), ["click", "buy"], num_layers=2)
        >>> {task: tuple(features.shape) for task, features in encoder(torch.zeros(2, 8)).items()}
        {'click': (2, 16), 'buy': (2, 16)}

    References:
        Tang et al. *Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
        Recommendations*. RecSys 2020, Sec. 4. https://doi.org/10.1145/3383313.3412236
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[str],
        num_layers: int = 2,
        shared_experts: int = 2,
        task_experts: int = 1,
        expert: ExpertCallable | None = None,
    ) -> None:
        super().__init__(encoder, tasks)
        owner = type(self).__name__
        if num_layers < 1:
            raise ValueError(f"{owner}: num_layers must be at least 1, got {num_layers}.")
        self.encoder = encoder
        spec = self.base_spec
        layers = []
        for i in range(num_layers):
            layer = CGCLayer(spec, self.task_names, shared_experts, task_experts, expert, i < num_layers - 1, owner)
            layers.append(layer)
            spec = layer.feature_spec
        self.layers = nn.ModuleList(layers)
        self.feature_spec = dict.fromkeys(self.task_names, spec)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters from which a path leads to more than one task."""
        *lower, last = [cast(CGCLayer, layer) for layer in self.layers]
        shared: list[nn.Module] = [self.encoder, *lower[:-1]]
        if lower:  # what the gates of this layer mix for a task is read by that task's part of the last layer alone
            below = lower[-1]
            shared += [below.shared, below.own, cast(Gate, below.shared_gate)]
        return parameters_of([*shared, last.shared])

    def forward(self, inputs: Tensor) -> dict[str, Features]:
        """Return the last mixture of every task."""
        shared: Features | None = self.encoder(inputs)
        features = {task: cast(Features, shared) for task in self.task_names}
        for layer in self.layers:
            features, shared = layer(features, shared)
        return features


class CGC(PLE):
    """One layer of task-specific and shared experts: :class:`PLE` with a single layer (Tang et al., RecSys 2020).

    Args:
        encoder: Encoder below the experts.
        tasks: Names of the tasks.
        shared_experts: Number of shared experts.
        task_experts: Number of experts of every task.
        expert: Callable ``FeatureSpec -> nn.Module`` that builds an expert; None takes one layer as wide as the
            features.

    Shape:
        - inputs: those of ``encoder``; returns task -> features of the expert's kind.

    Raises:
        ValueError: If a number does not fit, or the experts do not fit the encoder.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import MLPEncoder
        >>> encoder = CGC(MLPEncoder(8, [16]), ["click", "buy"], shared_experts=1, task_experts=2)
        >>> {task: tuple(features.shape) for task, features in encoder(torch.zeros(2, 8)).items()}
        {'click': (2, 16), 'buy': (2, 16)}

    References:
        Tang et al. *Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
        Recommendations*. RecSys 2020, Sec. 4.1. https://doi.org/10.1145/3383313.3412236
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[str],
        shared_experts: int = 2,
        task_experts: int = 1,
        expert: ExpertCallable | None = None,
    ) -> None:
        super().__init__(encoder, tasks, 1, shared_experts, task_experts, expert)
