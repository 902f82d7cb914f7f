"""What a look measures between the tasks: cosines of their gradients, and losses after a step on one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_mtl.balancers.base import is_distributed, mean_over_ranks
from lightning_mtl.functional.gradients import gramian, gramian_cosines

Spans = Mapping[str, slice]
"""Layer -> columns of the gradient matrix; the empty name is that of all of them."""


def arrange(
    parameters: Iterable[nn.Parameter], layers: Mapping[str, Sequence[nn.Parameter]] | None
) -> tuple[list[nn.Parameter], Spans]:
    """Return the trained ones of the parameters, each once and layer by layer, and the columns of every layer.

    Args:
        parameters: The shared parameters.
        layers: Layer -> its parameters; None tells no layers apart.
    """
    shared = {id(parameter): parameter for parameter in parameters if parameter.requires_grad}
    ordered: list[nn.Parameter] = []
    spans: dict[str, slice] = {}
    end = 0
    for name, members in (layers or {}).items():
        own = [shared.pop(id(parameter)) for parameter in members if id(parameter) in shared]
        if own:
            start, end = end, end + sum(parameter.numel() for parameter in own)
            spans[name] = slice(start, end)
            ordered += own
    ordered += shared.values()
    return ordered, {"": slice(0, sum(parameter.numel() for parameter in ordered)), **spans}


def cosines(matrix: Tensor, spans: Spans) -> dict[str, Tensor]:
    """Return the cosines between the rows, ``(K, K)`` for every layer; NaN for a row that is not finite.

    Args:
        matrix: One gradient a row.
        spans: Layer -> columns.
    """
    found = {}
    for name, columns in spans.items():
        gram = gramian(matrix[:, columns])
        broken = ~gram.diagonal().isfinite()
        values = gramian_cosines(torch.where(broken[:, None] | broken, 0, gram))
        found[name] = torch.where(broken[:, None] | broken, torch.nan, values)
    return found


def lookahead(
    base: Tensor,
    matrix: Tensor,
    parameters: Sequence[nn.Parameter],
    rates: Sequence[float],
    losses: Callable[[], Tensor],
) -> Tensor:
    r"""Return :math:`1 - L_j(\theta - \eta g_i) / L_j(\theta)`, ``(K, K)``, rows i; NaN where it means nothing.

    The parameters are changed in place and put back bit for bit.

    Args:
        base: Losses at the parameters as they are, ``(K,)``.
        matrix: Gradient of every loss, ``(K, P)``.
        parameters: What the step changes.
        rates: Learning rate of each of them.
        losses: Evaluates the same losses again; NaN for one that cannot be evaluated.
    """
    kept = [parameter.detach().clone() for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]
    after = []
    try:
        for row in matrix:
            for parameter, value, part, rate in zip(parameters, kept, row.split(sizes), rates, strict=True):
                # through .data: a graph that holds the parameter must not take it for changed
                step = part.view_as(parameter).to(parameter.dtype)
                parameter.data.copy_(value).add_(step, alpha=-rate)
            after.append(losses())
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)
    table = mean_over_ranks(torch.cat([base[None], *(row[None] for row in after)]))
    ratio = table[1:] / table[0]
    return torch.where(table[0] > 0, 1 - ratio, torch.nan)


def learning_rates(optimizers: Iterable[Optimizer], parameters: Sequence[nn.Parameter]) -> list[float]:
    """Return the present learning rate of every parameter; 0 where no optimizer holds it.

    Raises:
        MisconfigurationException: If there is none for any of them.
    """
    known = {
        id(parameter): float(group["lr"])
        for optimizer in optimizers
        for group in optimizer.param_groups
        if "lr" in group
        for parameter in group["params"]
    }
    if not any(id(parameter) in known for parameter in parameters):
        raise MisconfigurationException(
            "TaskAffinity: no optimizer has a learning rate for any of the shared parameters; pass lookahead_lr=."
        )
    return [known.get(id(parameter), 0.0) for parameter in parameters]


def same_on_all_processes(owner: str, tasks: Sequence[str]) -> None:
    """Raise RuntimeError if the processes have losses of different tasks."""
    if not is_distributed():
        return
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, list(tasks))
    if any(names != everywhere[0] for names in everywhere):
        raise RuntimeError(
            f"{owner}: losses must return the same tasks on every process, got {everywhere}; return a zero that "
            "depends on the parameters where a process has no label."
        )
