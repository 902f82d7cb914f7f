"""When to finetune, and how to do it in the middle of a run without disturbing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def finetuning_steps(total_steps: int, k: int) -> list[int]:
    r"""Return the training steps after which k-FPF finetunes, :math:`\lfloor n\,(i+1)/k \rfloor` for i = 0..k-1.

    Args:
        total_steps: Number of training steps n.
        k: How many times to finetune.

    Raises:
        ValueError: If ``k`` is not positive or larger than the number of steps.

    Example:
        >>> finetuning_steps(100, 3)
        [33, 66, 100]
    """
    if not 1 <= k <= total_steps:
        raise ValueError(
            f"ForgettingPrioritizedFinetuning: k must be 1 to the number of training steps {total_steps}, got {k}; "
            "lower k or train longer."
        )
    return [total_steps * (i + 1) // k for i in range(k)]


@contextmanager
def own_gradients(module: nn.Module) -> Iterator[None]:
    """Put the gradients of all parameters aside."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


@contextmanager
def running_statistics(module: nn.Module, update: bool) -> Iterator[None]:
    """Have layers with running statistics normalise with these and not update them, unless ``update``."""
    layers = [] if update else [child for child in module.modules() if isinstance(child, _NormBase)]
    modes = [(layer, layer.training) for layer in layers if layer.track_running_stats]
    for layer, _ in modes:
        layer.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def scales_gradients(trainer: pl.Trainer) -> bool:
    """Return whether the precision plugin scales losses."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def broadcast(module: nn.Module, parameters: list[nn.Parameter]) -> None:
    """Give all processes the first one's result."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        with torch.no_grad():
            for tensor in (*parameters, *module.buffers()):
                dist.broadcast(tensor.data, src=0)
