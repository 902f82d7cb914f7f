"""Weights that follow a schedule chosen by the user."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting
from lightning_mtl.nn.recorded import Recorded


@dataclasses.dataclass(frozen=True)
class LossSchedule(Recorded):
    r"""How one weight goes from ``start`` to ``end`` in the course of ``steps`` steps.

    With :math:`p = \min(t / \mathrm{steps}, 1)` the weight at step t (from 0) is ``start`` for ``"constant"``,
    ``start + (end - start) p`` for ``"linear"``, ``end + (start - end) (1 + cos(pi p)) / 2`` for ``"cosine"``,
    ``start (end / start)^p`` for ``"exponential"``, and for ``"step"`` it is ``start`` before step ``steps`` and
    ``end`` from then on.

    Args:
        type: Shape of the curve.
        start: Weight at step 0, not negative.
        end: Weight from step ``steps`` on, not negative; unused by ``"constant"``.
        steps: Length, positive; unused by ``"constant"``.

    Raises:
        ValueError: If a weight is negative or not finite, ``"exponential"`` meets a weight of zero, or a curve has no
            length.

    Example:
        >>> LossSchedule("linear", start=0.0, end=1.0, steps=10).at(5)
        0.5
    """

    type: Literal["constant", "linear", "cosine", "step", "exponential"] = "constant"
    start: float = 1.0
    end: float = 1.0
    steps: int = 0

    def __post_init__(self) -> None:
        """Check the fields, and record them as constructor arguments."""
        object.__setattr__(self, "_recorded_arguments", dataclasses.asdict(self))
        kinds = ("constant", "linear", "cosine", "step", "exponential")
        if self.type not in kinds:
            raise ValueError(f"LossSchedule: type must be one of {list(kinds)}, got {self.type!r}.")
        for name in ("start", "end"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"LossSchedule: {name} must be finite and not negative, got {value}.")
        if self.type != "constant" and self.steps < 1:
            raise ValueError(f"LossSchedule: steps must be positive for type {self.type!r}, got {self.steps}.")
        if self.type == "exponential" and (self.start == 0 or self.end == 0):
            raise ValueError(
                f"LossSchedule: start and end must be positive for type 'exponential', got {self.start} and {self.end}."
            )

    def at(self, step: int) -> float:
        """Return the weight at a step, counted from 0."""
        if self.type == "constant":
            return self.start
        if step >= self.steps:
            return self.end
        progress = step / self.steps
        if self.type == "step":
            return self.start
        if self.type == "linear":
            return self.start + (self.end - self.start) * progress
        if self.type == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
        return float(self.start * (self.end / self.start) ** progress)


class ScheduledWeighting(LossWeighting):
    r"""Weight every loss by a schedule over the course of training.

    .. math:: w_k(t) = \mathrm{schedule}_k(t)

    t counts the calls of the balancer, or the epochs that ended with :meth:`end_epoch` (``MultiTaskModule`` calls it;
    in an own training loop call it yourself). No state beside these counts. A task's schedule goes on while it is
    absent, and there is no normalisation over the tasks.

    Args:
        schedules: Task name -> schedule. Its keys are the tasks.
        interval: Whether the schedules' steps are calls of the balancer or epochs. With gradient accumulation there are
            several calls for one step of the optimizer.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)``, not negative.

    Raises:
        ValueError: If there is no task, or ``interval`` is unknown.

    Example:
        >>> import torch
        >>> balancer = ScheduledWeighting({"main": LossSchedule(), "extra": LossSchedule("step", 1.0, 0.0, steps=1)})
        >>> losses = {"main": torch.tensor(1.0), "extra": torch.tensor(2.0)}
        >>> balancer(losses), balancer(losses)
        (tensor(3.), tensor(1.))

    References:
        Caruana. *Multitask Learning*. Machine Learning 28, 1997. https://doi.org/10.1023/A:1007379606734
    """

    reads_losses: ClassVar[bool] = False

    def __init__(self, schedules: dict[str, LossSchedule], interval: Literal["step", "epoch"] = "step") -> None:
        super().__init__()
        if interval not in ("step", "epoch"):
            raise ValueError(f"ScheduledWeighting: interval must be 'step' or 'epoch', got {interval!r}.")
        self.schedules = dict(schedules)
        self.interval = interval
        self.bind(tuple(schedules))

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of this step."""
        step = self.steps if self.interval == "step" else self.epochs
        weights = torch.tensor([self.schedules[name].at(step) for name in self.task_names], dtype=losses.dtype)
        return take(weights, rows).to(losses.device, non_blocking=True)
