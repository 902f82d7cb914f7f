"""AdamW for steps that are of one task each."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

_RARE = 0.02


class MTAdamW(Optimizer):
    r"""AdamW whose moments take a unit gradient of one task, corrected for how often that task is drawn.

    For steps of one task k each, drawn with the probability :math:`s_k` (unmixed sampling, :class:`TaskSampler`):

    .. math::

        g = w_k \nabla L_k / \lVert \nabla L_k \rVert_2, \quad
        m \leftarrow \beta_1 m + \tfrac{1 - \beta_1}{s_k} g, \quad
        n \leftarrow \beta_2 n + \tfrac{1 - \beta_2}{s_k} g^2, \quad
        p \leftarrow (1 - \eta\lambda) p - \eta \hat m / (\sqrt{\hat n} + \epsilon)

    The norm is that over all parameters together. The expectation of :math:`g / s_k` over the draws is
    :math:`\sum_k w_k \nabla L_k / \lVert \nabla L_k \rVert`, whatever the probabilities and the scales of the losses.
    A parameter without gradient in a step counts as :math:`g = 0` there.

    In an ordinary Trainer :class:`~lightning_mtl.MultiTaskModule` tells it the task of every step, and it reads the
    probabilities of the epoch from the data module's ``task_ratios`` or the loader's :class:`TaskSampler`. By hand:
    ``optimizer.step(task="name")``. All micro-batches of one step must be of one task;
    ``TaskSampler(batches_per_draw=...)`` draws such.

    Args:
        params: Parameters or parameter groups. A group with ``task_specific=True`` holds parameters of single tasks:
            where such a parameter has a gradient it is updated by plain AdamW on the normalised gradient, with steps of
            its own, else it is left alone. With :math:`1/s_k` a rarely drawn head would make steps larger by
            :math:`1/\sqrt{s_k}`.
        lr: Learning rate.
        betas: Decay of the moments, as in AdamW.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        task_ratios: Task -> probability; they are divided by their sum. None takes those of the data.
        task_weights: Task -> weight :math:`w_k`; 1 where not given.
        normalize: ``"global"`` divides by the norm over all parameters, ``"none"`` leaves the gradient as it is.
        compensate: Whether to divide by the probability.
        bias_correction: Whether to correct the moments for their start at zero.
        task_specific_groups: Names of parameter groups that get ``task_specific=True``, such as ``heads``, the group
            of the tasks' heads in ``MultiTaskModule``.

    Raises:
        ValueError: If an argument is out of range; at a step, if the task is not known, has no probability, or there
            are several.

    Note:
        A step whose gradient is zero or not finite changes nothing, not the step count either; it is counted
        (``train/skipped_steps/zero``, ``train/skipped_steps/nonfinite``), and a zero one warns. Each step reads the
        norms of the gradients to the host. Clipping the gradient's norm before the step has no effect. Not in the
        paper: the order of normalisation and bias correction, and the treatment of ``task_specific`` groups.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = MTAdamW([weight], lr=0.1, weight_decay=0.0, task_ratios={"a": 0.5, "b": 0.5})
        >>> (1e6 * weight.sum()).backward()
        >>> optimizer.step(task="a")
        >>> weight.data
        tensor([ 0.8586, -1.1414])

    References:
        Li et al. *Uni-Perceiver v2: A Generalist Model for Large-Scale Vision and Vision-Language Tasks*. CVPR 2023.
        https://arxiv.org/abs/2211.09808
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        task_ratios: dict[str, float] | None = None,
        task_weights: dict[str, float] | None = None,
        normalize: Literal["global", "none"] = "global",
        compensate: bool = True,
        bias_correction: bool = True,
        task_specific_groups: Sequence[str] = (),
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"MTAdamW: lr must not be negative, got {lr}.")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"MTAdamW: betas must be two numbers in [0, 1), got {betas}.")
        if not eps >= 0:
            raise ValueError(f"MTAdamW: eps must not be negative, got {eps}.")
        if not weight_decay >= 0:
            raise ValueError(f"MTAdamW: weight_decay must not be negative, got {weight_decay}.")
        if normalize not in ("global", "none"):
            raise ValueError(f"MTAdamW: normalize must be 'global' or 'none', got {normalize!r}.")
        for task, weight in (task_weights or {}).items():
            if not 0 < weight < math.inf:
                raise ValueError(f"MTAdamW: task_weights must be positive and finite, got {weight} for task {task!r}.")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "task_specific": False,
        }
        super().__init__(params, defaults)
        names = [group.get("name") for group in self.param_groups]
        if unknown := sorted(set(task_specific_groups) - set(names)):
            raise ValueError(f"MTAdamW: task_specific_groups must name parameter groups of {names}, got {unknown}.")
        for group in self.param_groups:
            group["task_specific"] = group["task_specific"] or group.get("name") in task_specific_groups
        self.task_weights = dict(task_weights or {})
        self.normalize = normalize
        self.compensate = compensate
        self.bias_correction = bias_correction
        self._ratios = None if task_ratios is None else _checked_ratios(task_ratios)
        self._find_ratios: Callable[[], Mapping[str, float] | None] = _no_ratios
        self._observed: str | None = None
        self._rare: set[str] = set()
        self.drawn: dict[str, int] = {}
        self.skipped = {"zero": 0, "nonfinite": 0}
        self.grad_norms: dict[str, float] = {}

    # ------------------------------------------------------------------ which task, how often
    def attach(self, trainer: Any) -> None:
        """Meet the Trainer: check its strategy, and find who knows the probabilities of the tasks.

        Raises:
            MisconfigurationException: If the strategy shards parameters, or nobody knows the probabilities.
        """
        from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise MisconfigurationException(
                f"MTAdamW: needs the norm of the whole gradient, which {type(trainer.strategy).__name__} shards; train "
                "with strategy='ddp'."
            )
        if trainer.gradient_clip_val:
            warnings.warn(
                f"MTAdamW: gradient_clip_val={trainer.gradient_clip_val} has no effect on the direction of a step, and "
                "none at all on a normalised gradient; leave it out.",
                stacklevel=2,
            )
        self._find_ratios = functools.partial(_ratios_of_the_data, trainer)
        if self.compensate and self._ratios is None and self._find_ratios() is None:
            raise MisconfigurationException(
                "MTAdamW: task_ratios must be given, because the data has none (data module "
                f"{type(trainer.datamodule).__name__}, loader {type(trainer.train_dataloader).__name__}); or draw the "
                "tasks by a TaskSampler, or set compensate=False."
            )

    def observe_tasks(self, tasks: Sequence[str], begins: bool) -> None:
        """Be told the task of the batch under way.

        Raises:
            ValueError: If there are several tasks, or another one than in the batches before of the same step.
        """
        if len(tasks) != 1:
            raise ValueError(
                f"MTAdamW: a batch must carry labels of one task, got {list(tasks)}; sample with mixed=False, or take "
                "torch.optim.AdamW for mixed batches."
            )
        if not begins and self._observed not in (None, tasks[0]):
            raise ValueError(
                f"MTAdamW: all batches of one step must be of one task, got {tasks[0]!r} after {self._observed!r}; set "
                "the sampler's batches_per_draw to accumulate_grad_batches."
            )
        self._observed = tasks[0]

    def _ratio(self, task: str) -> float:
        if not self.compensate:
            return 1.0
        ratios = self._ratios
        if ratios is None:
            own = self._find_ratios()
            if own is None:
                raise ValueError(f"MTAdamW: task_ratios must give the probability of task {task!r}, got none.")
            ratios = _checked_ratios(own)
        if task not in ratios:
            raise ValueError(f"MTAdamW: task_ratios must name the task {task!r}, got {list(ratios)}.")
        if ratios[task] < _RARE and task not in self._rare:
            self._rare.add(task)
            warnings.warn(
                f"MTAdamW: task {task!r} is drawn with a probability of {ratios[task]:.3g}, so that each of its "
                f"gradients counts {1 / ratios[task]:.0f} times; expect noise, or draw it more often.",
                stacklevel=3,
            )
        return ratios[task]

    # ------------------------------------------------------------------ step
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, task: str | None = None) -> Any:
        """Make a step.

        Args:
            closure: Computes the loss anew and its gradients.
            task: Name of the task that the gradients are of; None takes the one observed.

        Raises:
            ValueError: If the task is not known, or has no probability.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        observed, self._observed = self._observed, None
        task = observed if task is None else task
        if task is None:
            raise ValueError(
                "MTAdamW: the task of the step is not known; call step(task=...), or observe_tasks() for every batch."
            )
        ratio = self._ratio(task)
        trained = [(group, [p for p in group["params"] if p.requires_grad]) for group in self.param_groups]
        norms = _norms([p.grad for _, parameters in trained for p in parameters if p.grad is not None])
        norm = math.sqrt(sum(value * value for value in norms))
        self.drawn[task] = self.drawn.get(task, 0) + 1
        self.grad_norms[task] = norm
        if norm == 0:
            self.skipped["zero"] += 1
            warnings.warn(f"MTAdamW: the gradient of task {task!r} is zero; the step is left out.", stacklevel=2)
            return loss
        if not math.isfinite(norm):
            self.skipped["nonfinite"] += 1
            return loss
        factor = self.task_weights.get(task, 1.0) / (norm if self.normalize == "global" else 1.0)
        remaining = iter(norms)
        for group, parameters in trained:
            if group["task_specific"]:
                self._update(group, list(_with_gradient(parameters, remaining)), factor, 1.0)
            else:
                for _ in range(sum(p.grad is not None for p in parameters)):
                    next(remaining)
                self._update(group, parameters, factor, ratio)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor], factor: float, ratio: float) -> None:
        if not parameters:
            return
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        states = [self._state_of(parameter) for parameter in parameters]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        torch._foreach_mul_(first, beta1)
        torch._foreach_mul_(second, beta2)
        present = [number for number, parameter in enumerate(parameters) if parameter.grad is not None]
        if present:
            gradients = torch._foreach_mul([cast(Tensor, parameters[number].grad) for number in present], factor)
            torch._foreach_add_([first[number] for number in present], gradients, alpha=(1 - beta1) / ratio)
            own = [second[number] for number in present]
            torch._foreach_addcmul_(own, gradients, gradients, value=(1 - beta2) / ratio)
        for state in states:
            state["step"] += 1
        steps = [state["step"] for state in states]
        corrected = self.bias_correction
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, [math.sqrt(1 - beta2**step) if corrected else 1.0 for step in steps])
        torch._foreach_add_(root, group["eps"])
        torch._foreach_mul_(parameters, 1 - lr * decay)
        scales = [-lr / (1 - beta1**step) if corrected else -lr for step in steps]
        torch._foreach_addcdiv_(parameters, first, root, scalars=scales)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    # ------------------------------------------------------------------ what others read
    def values_to_log(self) -> dict[str, float]:
        """Return how often every task was drawn, the norm of its last gradient, and the steps that were left out."""
        values = {f"train/task_drawn/{task}": float(count) for task, count in self.drawn.items()}
        values |= {f"grad_norm/{task}": norm for task, norm in self.grad_norms.items()}
        return values | {f"train/skipped_steps/{why}": float(count) for why, count in self.skipped.items() if count}

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and steps, and the counts of the tasks."""
        counts = {"drawn": dict(self.drawn), "skipped": dict(self.skipped)}
        return {**super().state_dict(), "tasks": counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the moments and steps, and the counts of the tasks.

        Raises:
            ValueError: If it is the state of another optimizer.
        """
        if "tasks" not in state_dict:
            raise ValueError(
                "MTAdamW: the state must be of an MTAdamW, got one without counts of tasks; its moments would not fit. "
                "Load the weights alone instead of resuming."
            )
        super().load_state_dict(state_dict)
        counts = state_dict["tasks"]
        self.drawn, self.skipped = dict(counts["drawn"]), dict(counts["skipped"])


def _no_ratios() -> None:
    return None


def _ratios_of_the_data(trainer: Any) -> Mapping[str, float] | None:
    """Return the probabilities of the epoch under way, from the data module or the training loader's sampler."""
    ratios = getattr(trainer.datamodule, "task_ratios", None)
    if ratios is None:
        ratios = getattr(getattr(trainer.train_dataloader, "sampler", None), "ratios", None)
    return cast("Mapping[str, float] | None", ratios)


def _checked_ratios(ratios: Mapping[str, float]) -> dict[str, float]:
    for task, ratio in ratios.items():
        if not 0 < ratio < math.inf:
            raise ValueError(f"MTAdamW: task_ratios must be positive and finite, got {ratio} for task {task!r}.")
    total = sum(ratios.values())
    return {task: ratio / total for task, ratio in ratios.items()}


def _norms(gradients: list[Tensor]) -> list[float]:
    """Return the norms of tensors, read by the host at once."""
    if not gradients:
        return []
    if any(gradient.is_sparse for gradient in gradients):
        raise ValueError("MTAdamW: gradients must be dense, got a sparse one; build the embedding with sparse=False.")
    norms = torch._foreach_norm(gradients)
    return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).tolist()


def _with_gradient(parameters: list[Tensor], norms: Iterator[float]) -> Iterator[Tensor]:
    """Yield the parameters whose gradient is there and not zero; takes one norm for each that is there."""
    for parameter in parameters:
        if parameter.grad is not None and next(norms) > 0:
            yield parameter
