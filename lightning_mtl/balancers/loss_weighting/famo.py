"""Fast adaptive multitask optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting, log_magnitude, loss_values
from lightning_mtl.balancers.loss_weighting.inner_adam import InnerAdam


class FAMO(LossWeighting):
    r"""Decrease the logarithms of all losses at an equal rate, from loss values alone (Liu et al., NeurIPS 2023).

    .. math::
        w_k = \frac{c\, z_k}{L_k - b_k}, \quad z = \mathrm{softmax}(\xi), \quad
        c = \Big(\sum_j \frac{z_j}{L_j - b_j}\Big)^{-1}

    with learned logits :math:`\xi` and lower bounds b. After the model's step the losses of the same batch are
    evaluated again, and one Adam step on :math:`\xi` follows the gradient

    .. math::
        \nabla_\xi = J_z^\top \delta + \gamma \xi, \qquad
        \delta_k = \log (L_k - b_k)\big|_{\mathrm{before}} - \log (L_k - b_k)\big|_{\mathrm{after}}

    where :math:`J_z` is the Jacobian of the softmax. This costs one more forward pass a step and no backward pass.
    ``MultiTaskModule`` does it; in an own training loop call :meth:`after_step` with the new losses after each
    optimizer step, else the logits stay as they are.

    With ``on="val"`` the change :math:`\delta` is that of validation losses between two calls of
    :meth:`observe_validation`, so that tasks are weighted by how fast they converge on unseen data; the
    :math:`L_k` in the weights remain training losses. ``MultiTaskModule`` then needs the callback
    :class:`~lightning_mtl.callbacks.ValidationLosses`.

    State: logits, Adam moments, and the losses of the last call. Both softmaxes run over the present tasks, the others
    keep their state. A task whose loss is at its bound has nothing left to minimise: it is treated as absent, with
    weight 0.

    Args:
        tasks: Task names; None binds them at the first call.
        lr: Step size of the logits. The paper uses 0.025.
        weight_decay: Decay :math:`\gamma` of the logits, an L2 term in the gradient. The paper's Alg. 2 and LibMTL use
            1e-3; the authors' code has 1e-2 as default of the class and other values in its scripts.
        min_losses: Task name -> lower bound b of the loss; None is 0 for all.
        on: Whether the change of the losses is that of the training batch in a step, or of validation batches.
        update_interval: Optimizer steps between two validation losses, for ``on="val"``.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)`` that sum to 1.

    Raises:
        ValueError: If ``lr`` or ``update_interval`` is not positive, ``weight_decay`` is negative, ``min_losses``
            misses a task, or :meth:`after_step` is called before any losses were balanced.

    Note:
        The authors, LibMTL and TorchJD add 1e-8 to ``L - b``; nothing is added here, so tiny losses keep their scale.
        The authors' code also clips the gradient to norm 1: set the Trainer's ``gradient_clip_val``. With gradient
        accumulation the losses of the last batch before the step count. TorchJD loses the Adam moments in a checkpoint.

    Example:
        >>> import torch
        >>> balancer = FAMO()
        >>> _ = balancer({"a": torch.tensor(1.0), "b": torch.tensor(3.0)})
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(0.7500), tensor(0.2500))
        >>> balancer.after_step({"a": torch.tensor(0.5), "b": torch.tensor(3.0)})  # a fell faster
        >>> _ = balancer({"a": torch.tensor(1.0), "b": torch.tensor(3.0)})
        >>> balancer.weights["a"]
        tensor(0.7405)

    References:
        Liu, Feng, Stone, Liu. *FAMO: Fast Adaptive Multitask Optimization*. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792, Alg. 1 and 2. Authors' code: https://github.com/Cranial-XIX/FAMO, MIT.
        Liu et al. *MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning*. KDD 2024.
        https://arxiv.org/abs/2311.02303 (on validation losses; from the card of the method, not checked against its
        text).
    """

    needs_losses_after_step: ClassVar[bool] = True
    logits: Tensor
    bounds: Tensor
    last_excess: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        min_losses: dict[str, float] | None = None,
        on: Literal["train", "val"] = "train",
        update_interval: int = 1,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"FAMO: lr must be positive, got {lr}.")
        if not weight_decay >= 0:
            raise ValueError(f"FAMO: weight_decay must not be negative, got {weight_decay}.")
        if on not in ("train", "val"):
            raise ValueError(f"FAMO: on must be 'train' or 'val', got {on!r}.")
        if update_interval < 1:
            raise ValueError(f"FAMO: update_interval must be at least 1, got {update_interval}.")
        self.on = on
        self.update_interval = update_interval
        # properties of this object, not of the class
        vars(self).update(needs_losses_after_step=on == "train", needs_validation_losses=on == "val")
        self.lr = lr
        self.weight_decay = weight_decay
        self.min_losses = min_losses
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("bounds", self._per_task("min_losses", self.min_losses, 0.0), persistent=False)
        self.register_buffer("logits", torch.zeros(num_tasks))
        self.register_buffer("last_excess", torch.zeros(num_tasks))
        self.adam = InnerAdam(num_tasks, self.lr)

    def _excess(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the losses above their bounds; 0 where there is nothing left, or where they are not finite."""
        excess = losses - take(self.bounds, rows)
        return torch.where(excess.isfinite() & (excess > 0), excess, 0.0)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights, and with ``on="train"`` remember the losses until :meth:`after_step`."""
        excess = self._excess(losses, rows)
        if self.on == "train":
            put(self.last_excess, rows, excess)
        logs, exists = log_magnitude(excess)
        # c z / (L - b) with sum 1 is the softmax of logit - log(L - b)
        scores = torch.where(exists, take(self.logits, rows) - logs, -torch.inf)
        return torch.where(exists, torch.softmax(scores, dim=0), 0.0)

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Update the logits.

        Args:
            losses: Task name -> loss of the same batch at the new parameters. Only tasks of the last call count.
        """
        self._names_of(losses)
        if not self._weights:
            raise ValueError("FAMO: after_step was called before any losses were balanced; call the balancer first.")
        names = [name for name in self.task_names if name in losses and name in self._weights]
        if names and self.on == "train":
            self._update_logits(losses, names)

    def observe_validation(self, losses: Mapping[str, Tensor]) -> None:
        """Update the logits by the change since the last observation, with ``on="val"``; the first is only kept.

        Args:
            losses: Task name -> validation loss; with several processes their mean over the processes counts.
        """
        given = self._names_of(losses)
        if not self.task_names:
            self.bind(given)
        if self.on == "val":
            names = [name for name in self.task_names if name in losses]
            rows = self._index(names)
            put(self.last_excess, rows, self._update_logits(losses, names))

    def _update_logits(self, losses: Mapping[str, Tensor], names: list[str]) -> Tensor:
        """Make one step on the logits of these tasks; return their losses above the bounds."""
        rows = self._index(names)
        before, had = log_magnitude(take(self.last_excess, rows))
        values = loss_values(torch.stack([losses[name].detach() for name in names]))
        excess = self._excess(values, rows)
        after, has = log_magnitude(excess)
        take_part = had & has
        change = torch.where(take_part, before - after, 0.0)
        logits = take(self.logits, rows)
        z = torch.where(take_part, torch.softmax(torch.where(take_part, logits, -torch.inf), dim=0), 0.0)
        gradient = z * (change - (z * change).sum()) + self.weight_decay * logits
        put(self.logits, rows, logits + self.adam(gradient, rows, take_part))
        return excess
