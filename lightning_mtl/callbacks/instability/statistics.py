"""Sizes of gradients, parameters and updates, by block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class ParameterStatistics:
    """Sums of squares of gradients, parameters and updates of every block.

    The update is what the learning rate multiplies: for Adam and its relatives, which keep ``exp_avg`` and
    ``exp_avg_sq``, it is computed from their state; for any other optimizer the parameters before the step are kept and
    the difference, weight decay included, is divided by the learning rate.

    Args:
        groups: Block -> parameters.
        quantities: Which of ``"gradients"``, ``"parameters"`` and ``"updates"`` to measure.
    """

    def __init__(self, groups: Mapping[str, list[nn.Parameter]], quantities: Iterable[str]) -> None:
        self.names = list(groups)
        self.quantities = frozenset(quantities)
        self._block = {id(p): i for i, group in enumerate(groups.values()) for p in group}
        self._parameters = [p for group in groups.values() for p in group]
        self.clear()

    def clear(self) -> None:
        """Forget what was measured."""
        self.sums: dict[str, dict[str, tuple[Tensor, int]]] = {}
        self.epsilons: dict[str, float] = {}
        self._seen: set[int] = set()
        self._stepping: list[tuple[nn.Parameter, Optimizer, dict[str, Any]]] = []
        self._before: dict[int, tuple[Tensor, float]] = {}

    def before_step(self, optimizer: Optimizer) -> None:
        """Measure the gradients that an optimizer is about to use, unscaled and not clipped."""
        gradients = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or id(parameter) not in self._block or id(parameter) in self._seen:
                    continue
                self._seen.add(id(parameter))
                gradients.append((parameter, parameter.grad))
                rate = float(group["lr"])
                self._stepping.append((parameter, optimizer, {**group, "params": None, "lr": rate}))
                if _uses_epsilon(optimizer, group):
                    name = self.names[self._block[id(parameter)]]
                    self.epsilons[name] = max(self.epsilons.get(name, 0.0), float(group["eps"]))
                elif "updates" in self.quantities and rate != 0:
                    self._before[id(parameter)] = (_local(parameter).detach().clone(), rate)
        if "gradients" in self.quantities:
            self._add("gradients", gradients)

    def after_step(self) -> None:
        """Measure the parameters and the updates."""
        if "parameters" in self.quantities:
            self._add("parameters", ((parameter, parameter) for parameter in self._parameters))
        if "updates" in self.quantities:
            self._add("updates", self._updates())
        self._stepping, self._before = [], {}

    def _updates(self) -> Iterable[tuple[nn.Parameter, Tensor]]:
        for parameter, optimizer, group in self._stepping:
            state = optimizer.state.get(parameter, {})
            if id(parameter) in self._before:
                before, rate = self._before[id(parameter)]
                yield parameter, (_local(parameter).detach() - before) / rate
            elif "exp_avg" in state and "exp_avg_sq" in state:
                yield parameter, adam_update(state, group)

    def _add(self, quantity: str, tensors: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        norms: dict[int, list[Tensor]] = {}
        counts: dict[int, int] = {}
        for parameter, tensor in tensors:
            block = self._block[id(parameter)]
            values = _local(tensor.detach())
            values = values.coalesce().values() if values.is_sparse else values
            norm = torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32))
            norms.setdefault(block, []).append(norm)
            counts[block] = counts.get(block, 0) + _local(parameter).numel()
        found = self.sums.setdefault(quantity, {})
        for block, of_block in norms.items():
            total, count = torch.stack(of_block).square().sum(), counts[block]
            if self.names[block] in found:
                total, count = total + found[self.names[block]][0], count + found[self.names[block]][1]
            found[self.names[block]] = (total, count)


def adam_update(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    r"""Return :math:`\Delta = \hat m / (\sqrt{\hat v} + \epsilon)` of the last step of Adam or AdamW.

    Args:
        state: The optimizer's state of one parameter: ``step``, ``exp_avg``, ``exp_avg_sq`` and with AMSGrad
            ``max_exp_avg_sq``.
        group: Its parameter group: ``betas`` and ``eps``.
    """
    first, second = group["betas"]
    step = state["step"]
    step = float(step) if not isinstance(step, Tensor) or step.device.type == "cpu" else step
    mean: Tensor = _local(state["exp_avg"]) / (1 - first**step)
    square: Tensor = _local(state.get("max_exp_avg_sq", state["exp_avg_sq"])) / (1 - second**step)
    return mean.div(square.sqrt().add(group["eps"]))


def _uses_epsilon(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Return whether an optimizer is Adam or a relative, whose updates shrink when gradients come near epsilon."""
    return "eps" in group and "betas" in group and isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor."""
    to_local = getattr(tensor, "to_local", None)
    return cast(Tensor, to_local()) if callable(to_local) else tensor


def root_mean_square(total: float, count: float) -> float:
    """Return the root mean square from a sum of squares."""
    return math.sqrt(total / count) if count and total >= 0 else math.nan
