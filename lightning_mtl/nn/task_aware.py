"""What the encoders that give every task features of its own have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec

Features = Tensor | list[Tensor]
"""Features of one task: a tensor, or a list of maps from the finest to the coarsest."""


class SupervisedFeatures(NamedTuple):
    """Features of one task together with predictions that were made on the way to them and are trained too.

    :class:`~lightning_mtl.MultiTaskModule` gives ``maps`` to the head, and adds ``weight`` times the sum of the task's
    losses on the initial predictions to the task's loss, logged as ``train/<task>/initial``. The balancer sees the sum.
    In evaluation they take no part.

    Args:
        maps: What the head reads, from the finest map to the coarsest.
        initial: Raw predictions ``(B, C_out, h, w)`` of any resolution; the task makes them fit its target.
        weight: Factor of their losses.
    """

    maps: list[Tensor]
    initial: list[Tensor]
    weight: float = 1.0


class TaskAwareEncoder(nn.Module, Recorded, ABC):
    """Base of the encoders that are built around an encoder and give ``{task: features}``.

    Subclasses set ``feature_spec``, one :class:`~lightning_mtl.nn.FeatureSpec` per task, and say in
    ``shared_parameters`` which parameters more than one task trains. What is left belongs to single tasks: gradient
    balancers leave it the gradient of that task.

    A subclass that regularizes itself (gates that are to be sparse or balanced) has a method
    ``auxiliary_loss() -> Tensor``; :class:`~lightning_mtl.MultiTaskModule` adds it to the balancer's scalar.

    Args:
        encoder: The encoder to build around; it declares a ``feature_spec`` of one kind for all tasks.
        tasks: Names of the tasks.

    Raises:
        ValueError: If there is no task, a name comes twice, or the encoder declares no features.
    """

    feature_spec: dict[str, FeatureSpec]

    def __init__(self, encoder: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        name = type(self).__name__
        self.task_names = tuple(tasks)
        if not self.task_names or len(set(self.task_names)) != len(self.task_names):
            raise ValueError(f"{name}: tasks must be one or more different names, got {list(tasks)}.")
        spec = getattr(encoder, "feature_spec", None)
        if not isinstance(spec, FeatureSpec):
            raise ValueError(
                f"{name}: {type(encoder).__name__} must declare the same features for all tasks (a FeatureSpec as "
                f"feature_spec), got {spec}."
            )
        self.base_spec = spec

    def idle_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that may be left without a gradient where a task has no label."""
        return self.parameters()

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that more than one task trains."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> dict[str, Features]:
        """Return the features of every task, with its initial predictions where there are some."""


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of several modules, each once and in order."""
    found: dict[nn.Parameter, None] = {}
    for module in modules:
        found |= dict.fromkeys(module.parameters())
    return list(found)
