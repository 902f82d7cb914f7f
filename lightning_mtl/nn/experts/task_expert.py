"""TaskExpert: image-wise mixtures of shared experts with a memory for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.experts.base import at_least_float32
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import TaskAwareEncoder, parameters_of


def gate_memory_mix(experts: Tensor, memory: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Read the experts and the memory, the memory being one more expert.

    .. math:: D = \sum_{e=1}^{N} a_e E_e + a_{N+1} M, \qquad a = \mathrm{softmax}(\text{logits})

    Args:
        experts: What the N experts say.
        memory: The memory of the task.
        logits: Logits of the gates, the last one that of the memory.

    Shape:
        - experts: ``(B, N, m, h, w)``; memory: ``(B, m, h, w)``; logits: ``(B, N + 1)`` or ``(B, N + 1, h, w)``;
          returns the mixture ``(B, m, h, w)`` and the gates, shaped as ``logits``, in float32 or wider.

    References:
        Ye, Xu. *TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial Mixture-of-Experts*. ICCV
        2023. https://arxiv.org/abs/2307.15324
    """
    gates = at_least_float32(logits).softmax(dim=1)
    weights = gates.to(experts.dtype)
    if weights.ndim == 2:
        weights = weights[:, :, None, None]
    mixed = (weights[:, :-1, None] * experts).sum(dim=1) + weights[:, -1:] * memory
    return mixed, gates


class MemorialMoE(nn.Module):
    """One depth of :class:`TaskExpert`: experts on a feature map, gates and memory writes for every task.

    Args:
        in_channels: Channels C of the feature map.
        memory_channels: Channels m of experts and memory.
        tasks: Names of the tasks.
        num_experts: Number of experts N, shared by the tasks.
        expert_rank: Channels of a bottleneck in every expert; None leaves it out.
        gate: One weight per expert and image, or one per position.
        gate_hidden: Width of the hidden layer of the gates.
        noise: Standard deviation of Gaussian noise on the logits of the gates in training.
        fixed_gates: Weigh everything alike, for comparison.

    Shape:
        - feature: ``(B, C, h, w)``; memory: task -> ``(B, m, h, w)``; returns the new memory, and the gates of every
          task ``(B, N + 1)`` or ``(B, N + 1, h, w)``.
    """

    def __init__(
        self,
        in_channels: int,
        memory_channels: int,
        tasks: Sequence[str],
        num_experts: int,
        expert_rank: int | None = None,
        gate: Literal["image", "pixel"] = "image",
        gate_hidden: int = 32,
        noise: float = 0.0,
        fixed_gates: bool = False,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.noise = noise
        self.experts = nn.ModuleList(
            nn.Sequential(
                *([] if expert_rank is None else [nn.Conv2d(in_channels, expert_rank, 1, bias=False)]),
                nn.Conv2d(expert_rank or in_channels, memory_channels, 1, bias=False),
                nn.BatchNorm2d(memory_channels),
                nn.GELU(),
            )
            for _ in range(num_experts)
        )
        self.gates = None
        if not fixed_gates:
            self.gates = nn.ModuleDict(
                {
                    task: nn.Sequential(
                        nn.Conv2d(in_channels, gate_hidden, 1), nn.ReLU(), nn.Conv2d(gate_hidden, num_experts + 1, 1)
                    )
                    for task in tasks
                }
            )
        self.writes = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Conv2d(memory_channels, memory_channels, 1, bias=False),
                    nn.BatchNorm2d(memory_channels),
                    nn.GELU(),
                )
                for task in tasks
            }
        )

    def forward(self, feature: Tensor, memory: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the memory after reading and writing, and the gates."""
        said = torch.stack([expert(feature) for expert in self.experts], dim=1)
        seen = feature.mean(dim=(2, 3), keepdim=True) if self.gate == "image" else feature
        written, gates = {}, {}
        for task, write in self.writes.items():
            if self.gates is None:
                logits = seen.new_zeros(len(seen), len(self.experts) + 1, *seen.shape[2:])
            else:
                logits = self.gates[task](seen)
            if self.gate == "image":
                logits = logits.flatten(1)
            if self.training and self.noise > 0:
                logits = logits + self.noise * torch.randn_like(logits)
            mixed, gates[task] = gate_memory_mix(said, memory[task].to(said.dtype), logits)
            written[task] = memory[task] + write(mixed)
        return written, gates


class TaskExpert(TaskAwareEncoder):
    r"""Assemble the features of every task, per image, from experts at several depths (Ye, Xu, ICCV 2023).

    At each depth l the map :math:`F^l` of the encoder is read by N experts that all tasks share; a gate of the task
    weighs them, together with the task's memory as one more expert, and what comes out is written to the memory:

    .. math::
        D_t = \sum_{e=1}^{N} a^l_{t,e} E^l_e(F^l) + a^l_{t,N+1} M_t^{l-1}, \qquad
        M_t^l = M_t^{l-1} + W_t^l(D_t), \qquad a^l_t = \mathrm{softmax}(\mathrm{MLP}_t^l(\mathrm{GAP}(F^l)))

    The memory starts as a learned vector; the task's head reads it after the last depth, as one map.

    Args:
        encoder: Encoder with feature maps; each map is one depth, from the first to the last. Plain vision transformers
            (``TimmEncoder("vit_...", "maps")``) give maps of one size.
        tasks: Names of the tasks.
        memory_channels: Channels m of experts and memory.
        num_experts: Number of experts N at every depth.
        expert_rank: Channels of a bottleneck in every expert (low-rank experts); None leaves it out.
        gate: ``"image"`` for one weight per expert and image, ``"pixel"`` for one per position.
        resize: What to do with maps of different size: ``"bilinear"`` resizes all of them to the finest one, None
            refuses them.
        noise: Standard deviation of Gaussian noise on the logits of the gates in training.
        load_balance: Factor of the squared coefficient of variation of the mean weights of the experts, added to the
            training loss (``auxiliary_loss``); 0 leaves it out.
        fixed_gates: Weigh everything alike: the static decoder to compare with.

    Shape:
        - inputs: those of ``encoder``; returns task -> list of one map ``(B, m, H / s, W / s)``, s the finest stride.

    Raises:
        ValueError: If the features are no maps or of different size without ``resize``, or a number does not fit.

    Note:
        The authors have published no code. Gates, memory and their order follow the paper's abstract and figure; the
        layers of the experts (1 x 1 convolution, batch normalization, GELU), of the gates and of the writes, and the
        start of the memory are this package's choice. The loss for balanced experts is an option of this class.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import TimmEncoder
        >>> encoder = TaskExpert(
        ...     TimmEncoder("resnet10t", "maps", out_indices=(3, 4)), ["depth"], memory_channels=8, resize="bilinear"
        ... )
        >>> encoder(torch.zeros(2, 3, 64, 64))["depth"][0].shape
        torch.Size([2, 8, 4, 4])

    References:
        Ye, Xu. *TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial Mixture-of-Experts*. ICCV
        2023. https://arxiv.org/abs/2307.15324
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[str],
        memory_channels: int = 64,
        num_experts: int = 5,
        expert_rank: int | None = None,
        gate: Literal["image", "pixel"] = "image",
        resize: Literal["bilinear"] | None = None,
        noise: float = 0.0,
        load_balance: float = 0.0,
        fixed_gates: bool = False,
    ) -> None:
        super().__init__(encoder, tasks)
        spec = self.base_spec
        if spec.kind != "maps":
            raise ValueError(
                f"TaskExpert: the encoder must give feature maps, got {spec.kind!r}; for timm encoders take "
                "features='maps'."
            )
        if len(set(spec.strides)) > 1 and resize is None:
            raise ValueError(
                f"TaskExpert: the maps must have one size, got strides {spec.strides}; set resize='bilinear', or take "
                "an encoder whose maps have one stride (a plain vision transformer)."
            )
        if gate not in ("image", "pixel"):
            raise ValueError(f"TaskExpert: gate must be 'image' or 'pixel', got {gate!r}.")
        for argument, value in (("memory_channels", memory_channels), ("num_experts", num_experts)):
            if value < 1:
                raise ValueError(f"TaskExpert: {argument} must be at least 1, got {value}.")
        if noise < 0 or load_balance < 0:
            raise ValueError(f"TaskExpert: noise and load_balance must not be negative, got {noise}, {load_balance}.")
        self.encoder = encoder
        self.depths = nn.ModuleList(
            MemorialMoE(
                channels,
                memory_channels,
                self.task_names,
                num_experts,
                expert_rank,
                gate,
                noise=noise,
                fixed_gates=fixed_gates,
            )
            for channels in spec.channels
        )
        self.memory = nn.ParameterDict(
            {task: nn.Parameter(0.02 * torch.randn(memory_channels)) for task in self.task_names}
        )
        self.load_balance = load_balance
        self.feature_spec = dict.fromkeys(self.task_names, FeatureSpec("maps", (memory_channels,), spec.strides[:1]))
        self.gates: list[dict[str, Tensor]] = []
        """Gates of the last pass, one mapping task -> ``(B, N + 1[, h, w])`` per depth."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "gates": []}  # what belongs to a pass is not copied

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder and of the experts."""
        return parameters_of([self.encoder, *(cast(MemorialMoE, depth).experts for depth in self.depths)])

    def auxiliary_loss(self) -> Tensor:
        """Return the penalty on unequal use of the experts in the last pass; zero if it is not asked for."""
        penalty = torch.zeros((), device=next(self.parameters()).device)
        if self.load_balance > 0:
            for depth in self.gates:
                for gates in depth.values():
                    use = gates.transpose(0, 1).flatten(1).mean(dim=1)
                    penalty = penalty + self.load_balance * use.var(correction=0) / use.mean() ** 2
        return penalty

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:  # type: ignore[override]  # a list is one form of features
        """Return the memory of every task after the last depth."""
        maps = self.encoder(inputs)
        size = maps[0].shape[-2:]
        memory = {
            task: vector.view(1, -1, 1, 1).expand(len(maps[0]), -1, *size) for task, vector in self.memory.items()
        }
        self.gates = []
        for depth, feature in zip(self.depths, maps, strict=True):
            if feature.shape[-2:] != size:
                feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
            memory, gates = depth(feature, memory)
            self.gates.append(gates)
        return {task: [value] for task, value in memory.items()}
