"""Gradient normalization."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_mtl.balancers.base import Balancer, Recompute, is_distributed, mean_over_ranks, put, take
from lightning_mtl.balancers.engines.graph import differentiate
from lightning_mtl.balancers.loss_weighting.base import loss_values
from lightning_mtl.balancers.loss_weighting.inner_adam import InnerAdam

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class GradNorm(Balancer):
    r"""Learn weights that bring the gradient norms of all tasks to a common scale (Chen et al., ICML 2018).

    With :math:`G_k = w_k \lVert \nabla_W L_k \rVert` at chosen shared parameters W, the weights descend

    .. math::
        \sum_k \big| G_k - \bar G\, r_k^{\alpha} \big|, \qquad
        r_k = \frac{L_k / L_k(0)}{\tfrac1K \sum_j L_j / L_j(0)}

    where the target :math:`\bar G r_k^\alpha` with the mean :math:`\bar G` of all :math:`G_k` counts as a constant. The
    gradient is then :math:`\lVert \nabla_W L_k \rVert \operatorname{sign}(G_k - \bar G r_k^\alpha)`, exactly and with
    no second derivative. A step uses the weights :math:`w(t)` and then makes :math:`w(t + 1)`, clipped at 0 and
    normalised to sum to K. This costs one backward pass a task down to W, on top of the usual one; with
    ``parameters="last"`` that is a pass through the heads. Heads receive the weighted loss.

    With several processes the norms are those of the gradients averaged over them, the gradients of the joined batch.

    State: weights, start losses :math:`L_k(0)`, moments of the inner optimizer. Means run over the present
    tasks. The update keeps the sum of the present tasks' weights, so that of all is K; absent tasks keep everything,
    and their start loss is the first one that they have. A step in which some loss or norm is not finite
    changes nothing.

    Args:
        tasks: Task names; None binds them at the first call.
        asymmetry: :math:`\alpha`, not negative: how strongly slow tasks are pushed. The paper uses 1.5 on NYUv2 and
            0.12 on its toy problem; 0 makes all norms equal.
        lr: Step size of the weights. The paper uses 0.025.
        optimizer: Rule for the weights: ``"adam"``, which makes the update independent of the scale of the gradients,
            or ``"sgd"``, the plain step of the paper's Alg. 1.
        parameters: Where the norms are taken. ``"last"``: the last tensor with two or more dimensions in ``shared``, in
            the order of registration, so the last shared layer's weight where modules are registered in the order of
            use, as in torchvision and timm. ``"all"``: all that is given as ``shared``, exact and dear; in an own loop
            hand over the layer of your choice. A list: names of parameters of the LightningModule, looked up when
            training starts.
        initial_losses: Task name -> start loss, positive, for instance log C for C classes; None takes the first loss.

    Shape:
        - losses: ``(K,)``; weights ``(K,)``, not negative, sum to K.

    Raises:
        ValueError: If an argument is out of range, ``shared`` is missing, or no loss depends on the parameters.

    Note:
        The paper learns the weights directly, and so does this; LibMTL learns the logits of a softmax with the model's
        optimizer, and starts after an epoch whose mean losses are the start losses. lucidrains/gradnorm-pytorch
        averages only the mean norm over processes, so that their weights drift apart. Clipping at 0 is ours: the paper
        does not say what happens there; a task at 0 comes back, since its norm is below any target. With gradient
        accumulation the weights move at every call.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> balancer = GradNorm(lr=0.1, parameters="all")
        >>> losses = {"a": x.sum(), "b": 3 * x.sum()}
        >>> _ = balancer(losses, shared=[x]), balancer(losses, shared=[x])
        >>> balancer.weights["a"], balancer.weights["b"]  # the first step had one each
        (tensor(1.1000), tensor(0.9000))

    References:
        Chen, Badrinarayanan, Lee, Rabinovich. *GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks*. ICML 2018. https://arxiv.org/abs/1711.02257, Eq. 1 and 2, Alg. 1.
    """

    needs: ClassVar[Literal["losses", "gradients", "second_pass"]] = "gradients"
    scaler: Any = None
    """Gradient scaler of float16 training (``torch.amp.GradScaler``); set by :meth:`attach`, or by hand."""

    task_weights: Tensor
    start_losses: Tensor
    adam: InnerAdam

    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        asymmetry: float = 1.5,
        lr: float = 0.025,
        optimizer: Literal["adam", "sgd"] = "adam",
        parameters: Literal["last", "all"] | list[str] = "last",
        initial_losses: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not asymmetry >= 0:
            raise ValueError(f"GradNorm: asymmetry must not be negative, got {asymmetry}.")
        if not lr > 0:
            raise ValueError(f"GradNorm: lr must be positive, got {lr}.")
        if optimizer not in ("adam", "sgd"):
            raise ValueError(f"GradNorm: optimizer must be 'adam' or 'sgd', got {optimizer!r}.")
        if not parameters or (isinstance(parameters, str) and parameters not in ("last", "all")):
            raise ValueError(
                f"GradNorm: parameters must be 'last', 'all' or a list of parameter names, got {parameters!r}."
            )
        if initial_losses is not None and any(not value > 0 for value in initial_losses.values()):
            raise ValueError(f"GradNorm: initial_losses must be positive, got {initial_losses}.")
        self.asymmetry = asymmetry
        self.lr = lr
        self.optimizer = optimizer
        self.parameter_choice = parameters
        self.initial_losses = initial_losses
        self._named: list[nn.Parameter] = []
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("task_weights", torch.ones(num_tasks))
        self.register_buffer("start_losses", self._per_task("initial_losses", self.initial_losses, 0.0))
        if self.optimizer == "adam":
            self.adam = InnerAdam(num_tasks, self.lr, eps=0.0)

    def attach(self, trainer: Trainer) -> None:
        """Look up the named parameters, and the gradient scaler of mixed precision.

        Raises:
            ValueError: If the LightningModule has no parameter of a name.
            MisconfigurationException: If the strategy shards the parameters.
        """
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise MisconfigurationException(
                f"GradNorm: needs the whole gradient of each task, which {type(trainer.strategy).__name__} shards; "
                "train with strategy='ddp' or take a balancer that needs the losses alone."
            )
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        if isinstance(self.parameter_choice, list):
            known = dict(trainer.lightning_module.named_parameters())
            if missing := [name for name in self.parameter_choice if name not in known]:
                raise ValueError(
                    f"GradNorm: {type(trainer.lightning_module).__name__} has no parameters {missing}; choose among "
                    "the names of its named_parameters()."
                )
            self._named = [known[name] for name in self.parameter_choice]

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        rows = self._index(losses)
        stacked = torch.stack(list(losses.values()))
        norms = self._gradient_norms(list(losses.values()), self._chosen(shared))
        weights = take(self.task_weights, rows)
        self._remember_weights(losses, weights)
        self._update(weights, norms, loss_values(stacked), rows)
        return (weights * stacked).sum()

    def _chosen(self, shared: Iterable[nn.Parameter] | None) -> list[nn.Parameter]:
        if isinstance(self.parameter_choice, list):
            if not self._named:
                raise ValueError(
                    "GradNorm: parameters given by name are looked up by attach(trainer), which was not called; "
                    "in an own training loop use parameters='all' and pass shared=[the layer's weight]."
                )
            return self._named
        candidates = [] if shared is None else [parameter for parameter in shared if parameter.requires_grad]
        if not candidates:
            raise ValueError("GradNorm: needs shared parameters that are trained; pass shared=encoder.parameters().")
        if self.parameter_choice == "all":
            return candidates
        return [parameter for parameter in candidates if parameter.ndim > 1][-1:] or candidates[-1:]

    def _gradient_norms(self, losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the norm of each task's gradient, averaged over the processes, at these parameters."""
        one = torch.ones((), device=losses[0].device)
        scale = one if self.scaler is None else self.scaler.scale(one)  # half-precision gradients would vanish
        matrix = []
        reached = False
        for loss in losses:
            grads: Sequence[Tensor | None] = [None] * len(parameters)
            if loss.requires_grad:
                grads = differentiate([loss], parameters, [scale.to(loss.dtype)])
            reached = reached or any(grad is not None for grad in grads)
            pieces = [
                torch.zeros_like(parameter) if grad is None else grad
                for grad, parameter in zip(grads, parameters, strict=True)
            ]
            row = torch.cat([piece.detach().flatten() for piece in pieces])
            matrix.append(row.to(torch.promote_types(row.dtype, torch.float32)))
        if not reached and not is_distributed():  # with several processes, this one may have no labels
            raise ValueError(
                "GradNorm: no loss depends on the chosen parameters; name a layer that the tasks share with "
                "parameters=[...], or pass it as shared with parameters='all'."
            )
        gradients = mean_over_ranks(torch.stack(matrix) / scale)
        size = gradients.abs().amax(dim=1, keepdim=True)  # squares of the scaled entries neither overflow nor vanish
        norms: Tensor = torch.linalg.vector_norm(gradients / torch.where(size > 0, size, 1.0), dim=1)
        return norms * size.squeeze(1)

    def balancing_gradient(self, weights: Tensor, norms: Tensor, losses: Tensor, start: Tensor) -> Tensor:
        """Return the gradient of the balancing objective with respect to the weights.

        Args:
            weights: Weights w of the tasks, shape ``(k,)``.
            norms: Norms of the unweighted task gradients, shape ``(k,)``.
            losses: Losses, shape ``(k,)``.
            start: Start losses, 0 where unknown, shape ``(k,)``.
        """
        ratios = torch.where(start > 0, losses / torch.where(start > 0, start, 1.0), 1.0).clamp(min=0)
        mean = ratios.mean()
        rates = torch.where(mean > 0, ratios / torch.where(mean > 0, mean, 1.0), 1.0)
        weighted = weights * norms
        return norms * torch.sign(weighted - weighted.mean() * rates**self.asymmetry)

    def _update(self, weights: Tensor, norms: Tensor, losses: Tensor, rows: list[int]) -> None:
        start = take(self.start_losses, rows)
        start = torch.where((start == 0) & losses.isfinite() & (losses > 0), losses.to(start.dtype), start)
        put(self.start_losses, rows, start)
        norms = norms.to(weights.dtype)
        finite = (losses.isfinite() & norms.isfinite()).all().expand(len(rows))
        gradient = self.balancing_gradient(weights, norms, losses, start)
        step = self.adam(gradient, rows, finite) if self.optimizer == "adam" else -self.lr * gradient
        moved = (weights + torch.where(finite, step, 0.0)).clamp(min=0)
        total = moved.sum()
        moved = torch.where(total > 0, moved * (weights.sum() / torch.where(total > 0, total, 1.0)), weights)
        put(self.task_weights, rows, moved)
