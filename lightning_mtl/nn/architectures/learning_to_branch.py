"""Learning to branch: a tree of stages that is found while it is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.architectures.base import StagedEncoder, along_paths, copies
from lightning_mtl.nn.task_aware import parameters_of


class LearningToBranch(StagedEncoder):
    r"""Search the tree of shared stages by sampling each node's parent (Guo et al., ICML 2020).

    Every stage has several nodes. A node j of stage l reads a mixture of the nodes below with weights drawn from a
    Gumbel-softmax over its parents, once per batch:

    .. math:: x_j^{l+1} = \sum_i d_{ij}\, y_i^l, \qquad d_j = \mathrm{softmax}\big((\theta_j + \epsilon) / \tau\big)

    with Gumbel noise :math:`\epsilon` and a temperature :math:`\tau` that falls during training. The last stage has one
    node per task. In evaluation a node reads its likeliest parent alone. :meth:`tree` returns what was found, to be
    trained from scratch with :class:`TaskTree` as the paper does.

    Args:
        encoder: Encoder whose stages are copied for the nodes; it has ``stages()``. Copies start alike.
        tasks: Names of the tasks.
        num_nodes: Number of nodes in every stage but the last; None takes one per task.
        temperature: Temperature at the start, positive.
        min_temperature: Temperature that is not gone below, positive.
        decay: Factor on the temperature with every training pass, in (0, 1].

    Shape:
        - inputs: those of ``encoder``; returns task -> list of maps along its path, shaped as those of ``encoder``.

    Raises:
        ValueError: If a number is out of range, or the encoder cannot be taken apart.

    Note:
        The maps of a task below the last stage are the mixtures that it reads along its likeliest path. The start and
        the fall of the temperature are this package's choice. All nodes are computed in training; in evaluation those
        on the tree.

    References:
        Guo, Lee, Ulbricht. *Learning to Branch for Multi-Task Learning*. ICML 2020, Sec. 3.
        https://arxiv.org/abs/2006.01895
    """

    temperature: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[str],
        num_nodes: int | None = None,
        temperature: float = 5.0,
        min_temperature: float = 0.5,
        decay: float = 0.999,
    ) -> None:
        super().__init__(encoder, tasks)
        if num_nodes is not None and num_nodes < 1:
            raise ValueError(f"LearningToBranch: num_nodes must be at least 1, got {num_nodes}.")
        if not 0 < min_temperature <= temperature:
            raise ValueError(
                "LearningToBranch: 0 < min_temperature <= temperature must hold, got "
                f"{min_temperature} and {temperature}."
            )
        if not 0 < decay <= 1:
            raise ValueError(f"LearningToBranch: decay must be in (0, 1], got {decay}.")
        count = len(self.task_names)
        sizes = [num_nodes or count] * (len(self.parts) - 1) + [count]
        self.nodes = nn.ModuleList(copies(part, size) for part, size in zip(self.parts, sizes, strict=True))
        self.parent_logits = nn.ParameterList(
            nn.Parameter(torch.zeros(size, below)) for below, size in itertools.pairwise(sizes)
        )
        self.min_temperature = min_temperature
        self.decay = decay
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of the last stage, whose nodes belong to single tasks."""
        return parameters_of(self.nodes[:-1]) + list(self.parent_logits[:-1])

    def tree(self) -> list[list[int]]:
        """Return, for every stage, the node that each task takes when every node reads its likeliest parent."""
        path = [list(range(len(self.task_names)))]
        for logits in reversed(self.parent_logits):
            parents = logits.argmax(dim=1).tolist()
            path.insert(0, [parents[node] for node in path[0]])
        return path

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:  # type: ignore[override]  # lists are features too
        """Return the maps of every task."""
        return self._sampled(inputs) if self.training else self._likeliest(inputs)

    def _sampled(self, inputs: Tensor) -> dict[str, list[Tensor]]:
        outputs = torch.stack([node(inputs) for node in cast(nn.ModuleList, self.nodes[0])])
        read: list[Tensor] = []  # what each node of a stage reads
        for nodes, logits in zip(self.nodes[1:], self.parent_logits, strict=True):
            draws = F.gumbel_softmax(logits.float(), tau=cast(float, self.temperature.clone()), dim=1).to(outputs.dtype)
            mixed = torch.einsum("ji,ibchw->jbchw", draws, outputs)
            read.append(mixed)
            outputs = torch.stack([node(x) for node, x in zip(cast(nn.ModuleList, nodes), mixed, strict=True)])
        with torch.no_grad():
            self.temperature.mul_(self.decay).clamp_(min=self.min_temperature)
        above = self.tree()[1:]
        return {
            task: [*(mixed[stage[k]] for mixed, stage in zip(read, above, strict=True)), outputs[k]]
            for k, task in enumerate(self.task_names)
        }

    def _likeliest(self, inputs: Tensor) -> dict[str, list[Tensor]]:
        return along_paths(
            inputs, self.task_names, self.tree(), lambda stage, node: cast(nn.ModuleList, self.nodes[stage])[node]
        )
