"""Convergence balancer: weights from the slopes of validation losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_mtl.balancers.loss_weighting.base import LossWeighting, loss_values


def slopes(values: Tensor) -> Tensor:
    """Return the least-squares slope of every column against the row number, float64.

    Args:
        values: ``(n, K)`` with at least two rows.

    Example:
        >>> slopes(torch.tensor([[1.0, 3.0], [2.0, 1.0]]))
        tensor([ 1., -2.], dtype=torch.float64)
    """
    values = values.double()
    steps = torch.arange(len(values), dtype=torch.float64)
    steps = steps - steps.mean()
    return steps @ (values - values.mean(dim=0)) / steps.square().sum()


def convergence_weights(
    task_slopes: Tensor, max_slopes: Tensor, tau: float = 5.0, min_weight: float | None = None, clip_df: bool = False
) -> Tensor:
    r"""Return the weights of CoBa for the last of a series of slopes; see :class:`CoBa`.

    Args:
        task_slopes: Slopes of the tasks' validation losses, ``(n, K)``, oldest first.
        max_slopes: Slopes of the largest loss, ``(m,)``, oldest first.
        tau: Sharpness :math:`\tau` of the divergence factor.
        min_weight: Least weight; None is :math:`1 / (10 K)`.
        clip_df: Whether the divergence factor is at most 1.

    Returns:
        ``(K,)``, float64, sum 1.

    Example:
        >>> convergence_weights(torch.tensor([[-1.0, -1.0]]), torch.tensor([-1.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    task_slopes, max_slopes = task_slopes.double(), max_slopes.double()
    (count, tasks), max_count = task_slopes.shape, len(max_slopes)
    last = task_slopes[-1]
    relative = torch.softmax(tasks * _over(last, last.abs().sum()), dim=0)
    absolute = torch.softmax(-count * _over(last, task_slopes.abs().sum(dim=0)), dim=0)
    factor = max_count * torch.softmax(-tau * max_count * _over(max_slopes, max_slopes.abs().sum()), dim=0)[-1]
    if clip_df:
        factor = factor.clamp(max=1.0)
    weights = torch.softmax(tasks * (factor * relative + (1 - factor) * absolute), dim=0)
    least = 1 / (10 * tasks) if min_weight is None else min_weight
    return weights * (1 - least * tasks) + least if bool((weights < least).any()) else weights


def _over(values: Tensor, total: Tensor) -> Tensor:
    """Return ``values / total``, 0 where the total is 0."""
    return torch.where(total > 0, values / torch.where(total > 0, total, 1.0), 0.0)


class CoBa(LossWeighting):
    r"""Slow down tasks that converge first and tasks that begin to diverge, by validation losses (Gong et al., 2024).

    With the least-squares slope :math:`\alpha_i(t)` of task i's last validation losses, each divided by its first, and
    :math:`\alpha_{\max}(t)` that of the largest of them; K tasks, n and m remembered slopes of the two:

    .. math::
        \mathrm{RCS}_i &= \mathrm{softmax}_i \Big(K \frac{\alpha_i(t)}{\sum_j |\alpha_j(t)|}\Big), \qquad
        \mathrm{ACS}_i = \mathrm{softmax}_i \Big(-n \frac{\alpha_i(t)}{\sum_s |\alpha_i(s)|}\Big) \\
        \mathrm{DF} &= m \, \mathrm{softmax}_s
            \Big(-\tau m \frac{\alpha_{\max}(s)}{\sum_u |\alpha_{\max}(u)|}\Big)_t, \\
        w &= \mathrm{softmax}_i \big(K (\mathrm{DF} \cdot \mathrm{RCS}_i + (1 - \mathrm{DF}) \, \mathrm{ACS}_i)\big)

    and, if some weight is below the least one b, :math:`w \leftarrow w (1 - bK) + b` for all. While all tasks converge
    (DF large) the slower ones gain; when the worst begins to diverge, the weights go by each task's own history.

    The validation losses are given to :meth:`observe_validation` every ``update_interval`` optimizer steps:
    ``MultiTaskModule`` needs the callback :class:`~lightning_mtl.callbacks.ValidationLosses` for it. Weights are equal
    until ``warmup_steps``. State: the first losses, the last ``history`` ratios, and the slopes, all in float64 and in
    checkpoints. A task that is absent from a call takes no part, the weights of the others are scaled to sum 1.

    Args:
        tasks: Task names; None binds them at the first call.
        warmup_steps: Optimizer steps with equal weights.
        history: Observations that slopes are fitted to; at least 2.
        tau: Sharpness :math:`\tau` of the divergence factor.
        update_interval: Optimizer steps between two observations.
        min_weight: Least weight b, in [0, 1/K); None is :math:`1/(10K)`.
        clip_df: Whether DF is at most 1, as in the paper; the authors' code does not clip it.
        remember: Which slopes count once more than ``history`` steps were made. ``"authors"``: as in the authors' code,
            the last ``history - warmup_steps + 1`` of the tasks and all of the largest loss. ``"history"``: the last
            ``history`` of both. Until then the two agree.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)`` that sum to 1.

    Raises:
        ValueError: If an argument is out of range, a validation loss is missing, not finite or not positive, or the
            warm-up is over and no validation loss was ever given.

    Note:
        The defaults are those of the authors' code. It cuts the slopes of the tasks by a step number, as if there were
        slopes from the first step on, and does not cut those of the largest loss.

    Example:
        >>> import torch
        >>> balancer = CoBa(["a", "b"], warmup_steps=2)
        >>> for a, b in [(1.0, 1.0), (0.9, 0.99), (0.8, 0.98), (0.7, 0.97)]:  # a converges faster
        ...     balancer.observe_validation({"a": torch.tensor(a), "b": torch.tensor(b)})
        >>> _ = balancer({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
        >>> bool(balancer.weights["b"] > balancer.weights["a"])
        True

    References:
        Gong, Yu, Liao, Liu, Chen, Li. *CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models*.
        EMNLP 2024. https://arxiv.org/abs/2410.06741. Authors' code: https://github.com/codefuse-ai/MFTCoder,
        Apache-2.0.
    """

    reads_losses: ClassVar[bool] = False
    needs_validation_losses: ClassVar[bool] = True

    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        warmup_steps: int = 100,
        history: int = 200,
        tau: float = 5.0,
        update_interval: int = 1,
        min_weight: float | None = None,
        clip_df: bool = False,
        remember: Literal["authors", "history"] = "authors",
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ValueError(f"CoBa: warmup_steps must not be negative, got {warmup_steps}.")
        if history < 2:
            raise ValueError(f"CoBa: history must be at least 2, a slope needs two points, got {history}.")
        if not tau > 0:
            raise ValueError(f"CoBa: tau must be positive, got {tau}.")
        if update_interval < 1:
            raise ValueError(f"CoBa: update_interval must be at least 1, got {update_interval}.")
        if remember not in ("authors", "history"):
            raise ValueError(f"CoBa: remember must be 'authors' or 'history', got {remember!r}.")
        self.warmup_steps = warmup_steps
        self.history = history
        self.tau = tau
        self.update_interval = update_interval
        self.min_weight = min_weight
        self.clip_df = clip_df
        self.remember = remember
        self._forget()
        self.bind(tasks)

    def _forget(self) -> None:
        self._observations = 0
        self._first: list[float] = []
        self._ratios: list[list[float]] = []
        self._slopes: list[list[float]] = []
        self._max_slopes: list[float] = []

    def _create_state(self, num_tasks: int) -> None:
        if self.min_weight is not None and not 0 <= self.min_weight * num_tasks < 1:
            raise ValueError(f"CoBa: min_weight must be in [0, 1/{num_tasks}), got {self.min_weight}.")

    # the numbers are float64 on every device, which buffers of a model are not
    def get_extra_state(self) -> dict[str, Any]:
        """Return what is no tensor of the model: names, counters, and the history."""
        return super().get_extra_state() | {
            "observations": self._observations,
            "first": list(self._first),
            "ratios": [list(row) for row in self._ratios],
            "slopes": [list(row) for row in self._slopes],
            "max_slopes": list(self._max_slopes),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`get_extra_state` returned."""
        super().set_extra_state(state)
        self._observations, self._first = int(state["observations"]), list(state["first"])
        self._ratios, self._slopes = [list(row) for row in state["ratios"]], [list(row) for row in state["slopes"]]
        self._max_slopes = list(state["max_slopes"])

    def observe_validation(self, losses: Mapping[str, Tensor]) -> None:
        """Add one validation loss of every task to the history.

        Args:
            losses: Task name -> loss, positive; with several processes their mean over the processes counts.
        """
        names = self._names_of(losses)
        if not self.task_names:
            self.bind(names)
        missing = [name for name in self.task_names if name not in losses]
        if missing:
            raise ValueError(f"CoBa: a validation loss of every task is needed, {missing} are missing.")
        values = loss_values(torch.stack([losses[name].detach() for name in self.task_names])).tolist()
        wrong = {name: v for name, v in zip(self.task_names, values, strict=True) if not (math.isfinite(v) and v > 0)}
        if wrong:
            raise ValueError(f"CoBa: validation losses must be finite and positive, got {wrong}.")
        self._observations += 1
        if not self._first:
            self._first = values
            return
        self._ratios.append([value / first for value, first in zip(values, self._first, strict=True)])
        del self._ratios[: -self.history]
        if len(self._ratios) < 2 or self._observations * self.update_interval < self.warmup_steps:
            return
        ratios = torch.tensor(self._ratios, dtype=torch.float64)
        found = slopes(torch.cat((ratios, ratios.amax(dim=1, keepdim=True)), dim=1)).tolist()
        self._slopes.append(found[:-1])
        self._max_slopes.append(found[-1])
        if self.remember == "history":
            del self._slopes[: -self.history], self._max_slopes[: -self.history]
        else:
            first = max(math.ceil(self.warmup_steps / self.update_interval), 3)  # the observation with the first slope
            del self._slopes[: -max(self.history - first + 1, 1)]

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights that follow from the history."""
        if not self._observations and self.steps > max(self.warmup_steps, self.update_interval):
            raise ValueError(
                f"CoBa: no validation loss was given in {self.steps} steps; call observe_validation every "
                f"{self.update_interval} steps, or add lightning_mtl.callbacks.ValidationLosses to the Trainer."
            )
        if not self._slopes:
            return torch.full_like(losses, 1 / len(rows))
        weights = convergence_weights(
            torch.tensor(self._slopes, dtype=torch.float64),
            torch.tensor(self._max_slopes, dtype=torch.float64),
            self.tau,
            self.min_weight,
            self.clip_df,
        )[rows]
        return (weights / weights.sum()).to(losses.dtype).to(losses.device)
