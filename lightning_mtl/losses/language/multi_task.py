"""Losses of a language model on batches whose samples belong to several tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_mtl.functional.token_losses import check_token_shapes, token_losses


class TokenTaskLoss(nn.Module, ABC):
    """What the losses on mixed batches share: token losses, their counts, and the sums over samples and tasks.

    Args:
        num_tasks: Number of tasks.
        ignore_index: Label of tokens that do not count.
        sync_counts: Sum the counts over all processes, so that the mean of the gradients over processes is the gradient
            on the joined batch; all of them must then call it together.
    """

    def __init__(self, num_tasks: int, ignore_index: int = -100, sync_counts: bool = False) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"{type(self).__name__}: num_tasks must be at least 1, got {num_tasks}.")
        self.num_tasks = num_tasks
        self.ignore_index = ignore_index
        self.sync_counts = sync_counts
        self.dropped = 0
        """Samples without any labelled token that were left out so far."""

    def forward(
        self, logits: Tensor, labels: Tensor, task_id: Tensor, loss_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the mean loss of the tokens of every task, and how many tokens these are.

        Args:
            logits: Scores of the next token, ``(B, L, V)``, of any precision; scored in float32.
            labels: The token after every input, ``(B, L)``, shifted already.
            task_id: Task of every sample, ``(B,)``, in ``0 .. num_tasks - 1``.
            loss_mask: Which tokens count, ``(B, L)``, zero for those that do not; None leaves it to ``ignore_index``.

        Returns:
            A scalar, exactly zero with zero gradients where nothing is labelled; ``(num_tasks,)`` detached, NaN for
            absent tasks; ``(num_tasks,)`` int64.

        Raises:
            ValueError: If the shapes do not fit, or a label or a task is out of range.
        """
        name = type(self).__name__
        check_token_shapes(name, logits, labels)
        if task_id.shape != labels.shape[:1] or (loss_mask is not None and loss_mask.shape != labels.shape):
            raise ValueError(
                f"{name}: task_id must be (B,) and loss_mask (B, L) for labels {tuple(labels.shape)}, got "
                f"{tuple(task_id.shape)} and {None if loss_mask is None else tuple(loss_mask.shape)}."
            )
        if task_id.device.type == "cpu" and bool(((task_id < 0) | (task_id >= self.num_tasks)).any()):
            raise ValueError(f"{name}: task_id must be in 0..{self.num_tasks - 1}, got {task_id.tolist()}.")
        labelled = labels != self.ignore_index
        if loss_mask is not None:
            labelled = labelled & (loss_mask != 0)
        losses = token_losses(name, logits, labels, labelled)
        counts = labelled.sum(dim=1)
        if counts.device.type == "cpu":
            self.dropped += int((counts == 0).sum())
        loss = self.combine(losses, labelled, counts, task_id)
        tokens = self.per_task(counts, task_id)
        sums = self.per_task(losses.detach().sum(dim=1), task_id)
        return loss, sums / tokens, tokens

    def per_task(self, values: Tensor, task_id: Tensor) -> Tensor:
        """Return the sum of one value a sample over the samples of every task."""
        return values.new_zeros(self.num_tasks).index_add(0, task_id, values)

    def over_processes(self, values: Tensor) -> Tensor:
        """Return the values summed over all processes, where ``sync_counts`` asks for it.

        The sums carry the gradient of this process's values, multiplied by the number of processes, of which the mean
        over the processes is taken later.
        """
        if not (self.sync_counts and dist.is_available() and dist.is_initialized()):
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        if not values.requires_grad:
            return total
        return total + dist.get_world_size() * (values - values.detach())

    @abstractmethod
    def combine(self, losses: Tensor, labelled: Tensor, counts: Tensor, task_id: Tensor) -> Tensor:
        """Return the loss from the token losses ``(B, L)``, zero where not labelled, and their counts ``(B,)``."""


class MultiTaskTokenLoss(TokenTaskLoss):
    r"""Average token losses over the tokens, samples or tasks of a batch (MFTCoder, KDD 2024).

    With the cross entropy :math:`\ell_{jk}` of answer token k of sample j, :math:`T_j` answer tokens, the samples
    :math:`S_i` of task i and weights :math:`w_i`:

    - ``"case1"``: :math:`\sum_{jk} \ell_{jk} / \sum_j T_j`, all tokens pooled, the usual loss;
    - ``"case2"``: the mean over samples of :math:`\bar\ell_j = \sum_k \ell_{jk} / T_j`;
    - ``"case3"``: :math:`\sum_i w_i \frac{\sum_{j \in S_i, k} \ell_{jk}}{\sum_{j \in S_i} T_j} / \sum_i w_i`, over the
      tasks in the batch: the loss that balances the amounts of data;
    - ``"case4"``: the same with the mean over the task's samples of :math:`\bar\ell_j`.

    For a training loop of your own. In ``MultiTaskModule`` the same losses come from the task and the balancer:
    ``LanguageModeling(average="tokens")`` with ``LabelProportionalWeighting`` (case1) or
    ``EqualWeighting(normalize=True)`` (case3), with ``average="samples"`` cases 2 and 4.

    Args:
        num_tasks: Number of tasks.
        mode: Which of the four.
        task_weights: One weight a task, for cases 3 and 4; None is equal ones.
        ignore_index: Label of tokens that do not count.
        sync_counts: Take the sums and counts over all processes together.

    Shape:
        - logits ``(B, L, V)``, labels ``(B, L)``, task_id ``(B,)``, loss_mask ``(B, L)`` or None; returns a scalar,
          ``(num_tasks,)`` and ``(num_tasks,)``.

    Raises:
        ValueError: If an argument is out of range, the shapes do not fit or a label is no token.

    Note:
        The scalar takes part in the batch as a whole; without ``sync_counts`` several processes average ratios of their
        own batches, as the authors' code does. Samples without an answer token are left out and counted in ``dropped``.

    Example:
        >>> loss = MultiTaskTokenLoss(num_tasks=2, mode="case3")
        >>> logits = torch.zeros(2, 3, 4)
        >>> labels = torch.tensor([[1, 2, 3], [0, -100, -100]])
        >>> total, per_task, tokens = loss(logits, labels, torch.tensor([0, 1]))
        >>> total, tokens
        (tensor(1.3863), tensor([3, 1]))

    References:
        Liu, Chen, Liao, Gong, Wang, Lei, Liang, Chen, Shen, Zhou, Yu, Li. *MFTCoder: Boosting Code LLMs with Multitask
        Fine-Tuning*. KDD 2024. https://arxiv.org/abs/2311.02303. Authors' code:
        https://github.com/codefuse-ai/MFTCoder, Apache-2.0.
    """

    task_weights: Tensor

    def __init__(
        self,
        num_tasks: int,
        mode: Literal["case1", "case2", "case3", "case4"] = "case3",
        task_weights: Sequence[float] | None = None,
        ignore_index: int = -100,
        sync_counts: bool = False,
    ) -> None:
        super().__init__(num_tasks, ignore_index, sync_counts)
        if mode not in ("case1", "case2", "case3", "case4"):
            raise ValueError(f"MultiTaskTokenLoss: mode must be 'case1', 'case2', 'case3' or 'case4', got {mode!r}.")
        self.mode = mode
        weights = _per_task("MultiTaskTokenLoss", "task_weights", task_weights, num_tasks)
        self.register_buffer("task_weights", weights, persistent=False)

    def combine(self, losses: Tensor, labelled: Tensor, counts: Tensor, task_id: Tensor) -> Tensor:
        """Return the mean that the mode stands for."""
        if self.mode in ("case1", "case3"):
            values, units = losses.sum(dim=1), counts.to(losses.dtype)
        else:
            values, units = losses.sum(dim=1) / counts.clamp(min=1), (counts > 0).to(losses.dtype)
        if self.mode in ("case1", "case2"):
            sums, total = self.over_processes(values.sum()), self.over_processes(units.sum())
            return sums / total.clamp(min=1)
        sums = self.over_processes(self.per_task(values, task_id))
        total = self.over_processes(self.per_task(units, task_id))
        weights = torch.where(total > 0, self.task_weights.to(losses.dtype), 0.0)
        means = sums / total.clamp(min=1)
        whole = weights.sum()
        return (weights * means).sum() / torch.where(whole > 0, whole, 1.0)


class TaskFocalLoss(TokenTaskLoss):
    r"""Weight samples, or tasks, by how far they are from learnt (MFTCoder, KDD 2024).

    With the mean probability :math:`P_j` and the mean log-probability :math:`Q_j` of sample j's answer tokens:

    .. math::
        L_{\mathrm{sample}} = \sum_i \frac{1}{|S_i|} \sum_{j \in S_i} -\alpha_i (1 - P_j)^\gamma Q_j, \qquad
        L_{\mathrm{task}} = \sum_i -\alpha_i (1 - \bar P_i)^\gamma \bar Q_i

    with the means :math:`\bar P_i, \bar Q_i` over the samples :math:`S_i` of task i. :math:`\gamma = 0` leaves the sum
    over tasks of the means over their samples.

    For a training loop of your own. In ``MultiTaskModule``, ``LanguageModeling(average="samples", gamma=...)`` under
    ``EqualWeighting`` or ``FixedWeighting`` is the sample level.

    Args:
        num_tasks: Number of tasks.
        gamma: Focus :math:`\gamma`, not negative.
        alpha: One factor :math:`\alpha_i` a task; None is ones.
        level: Whether the focus is on samples or on tasks.
        ignore_index: Label of tokens that do not count.
        sync_counts: Take the sums and counts over all processes together.

    Shape:
        - as :class:`MultiTaskTokenLoss`.

    Raises:
        ValueError: If an argument is out of range, the shapes do not fit or a label is no token.

    Note:
        Written from the card of the method, whose formula is from memory of the paper. The factor carries a gradient.
        Samples without an answer token are left out and counted in ``dropped``.

    Example:
        >>> loss = TaskFocalLoss(num_tasks=1, gamma=1.0)
        >>> loss(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]), torch.tensor([0]))[0]  # 0.5 * log(2)
        tensor(0.3466)

    References:
        Liu et al. *MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning*. KDD 2024.
        https://arxiv.org/abs/2311.02303
    """

    alpha: Tensor

    def __init__(
        self,
        num_tasks: int,
        gamma: float = 2.0,
        alpha: Sequence[float] | None = None,
        level: Literal["sample", "task"] = "sample",
        ignore_index: int = -100,
        sync_counts: bool = False,
    ) -> None:
        super().__init__(num_tasks, ignore_index, sync_counts)
        if not gamma >= 0:
            raise ValueError(f"TaskFocalLoss: gamma must not be negative, got {gamma}.")
        if level not in ("sample", "task"):
            raise ValueError(f"TaskFocalLoss: level must be 'sample' or 'task', got {level!r}.")
        self.gamma = gamma
        self.level = level
        self.register_buffer("alpha", _per_task("TaskFocalLoss", "alpha", alpha, num_tasks), persistent=False)

    def combine(self, losses: Tensor, labelled: Tensor, counts: Tensor, task_id: Tensor) -> Tensor:
        """Return the focal loss of the level."""
        tokens, present = counts.clamp(min=1), (counts > 0).to(losses.dtype)
        surprise = losses.sum(dim=1) / tokens
        probability = torch.where(labelled, (-losses).exp(), 0.0).sum(dim=1) / tokens
        samples = self.over_processes(self.per_task(present, task_id)).clamp(min=1)
        if self.level == "sample":
            focused = present * (1 - probability).clamp(min=0) ** self.gamma * surprise
            means = self.over_processes(self.per_task(focused, task_id)) / samples
        else:
            means = self.over_processes(self.per_task(surprise, task_id)) / samples
            share = self.over_processes(self.per_task(probability, task_id)) / samples
            means = (1 - share).clamp(min=0) ** self.gamma * means
        return (self.alpha.to(losses.dtype) * means).sum()


def _per_task(owner: str, argument: str, values: Sequence[float] | None, num_tasks: int) -> Tensor:
    if values is None:
        return torch.ones(num_tasks)
    if len(values) != num_tasks or any(not value >= 0 for value in values):
        raise ValueError(f"{owner}: {argument} must be {num_tasks} non-negative numbers, got {list(values)}.")
    return torch.tensor([float(value) for value in values])
