"""What replay asks of a module: its loss on remembered samples, its logits, and that nothing is left behind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

LossFn = Callable[[Any, Any], Tensor]


def replay_loss(module: pl.LightningModule, batch: Any, loss_fn: LossFn | None = None) -> Tensor:
    """Return the loss of a module on remembered samples, without logging.

    It is the first of these that there is: ``loss_fn(module, batch)``, ``module.replay_loss(batch)``, the sum of
    ``module.task_losses(batch)``, and ``module.training_step(batch, 0)`` of a module with automatic optimization. A
    balancer takes no part in the first three, so it does not count these steps.

    Args:
        module: The LightningModule.
        batch: Samples as they came from the loader.
        loss_fn: Callable from module and batch to a scalar.

    Raises:
        MisconfigurationException: If there is none of them, or no loss comes out.
    """
    with silent(module):
        if loss_fn is not None:
            return loss_fn(module, batch)
        own = getattr(module, "replay_loss", None)
        if callable(own):
            return cast(Tensor, own(batch))
        losses = getattr(module, "task_losses", None)
        if callable(losses):
            return cast(Tensor, sum(losses(batch).values()))
        if not module.automatic_optimization:
            raise MisconfigurationException(
                f"replay: {type(module).__name__} optimizes manually, so its training_step gives no loss for "
                "remembered samples; pass loss_fn=, or give the module a method replay_loss(batch)."
            )
        step = getattr(module.training_step, "unwrapped", module.training_step)
        takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        outputs = step(batch, 0) if takes_index else step(batch)
    loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor):
        raise MisconfigurationException(
            f"replay: training_step of {type(module).__name__} must return a loss, got {type(loss).__name__}; pass "
            "loss_fn=, or give the module a method replay_loss(batch)."
        )
    return loss


def matching_loss(match: nn.Module, outputs: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over outputs of the loss between logits and stored logits."""
    return cast(Tensor, sum(match(outputs[name], logits) for name, logits in stored.items()))


@contextmanager
def silent(module: pl.LightningModule) -> Iterator[None]:
    """Let ``log`` and ``log_dict`` of a module do nothing."""
    names = [name for name in ("log", "log_dict") if name not in module.__dict__]
    for name in names:
        module.__dict__[name] = _nothing
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Take what ``log`` takes, and do nothing."""


@contextmanager
def untouched_buffers(module: nn.Module) -> Iterator[None]:
    """Put the buffers of a module, such as running statistics, back to what they were."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def wrap_training_step(module: pl.LightningModule, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Have ``wrapper(step, batch, ...)`` called for every training step; return a function that undoes it."""
    step = module.training_step
    own = module.__dict__.get("training_step")

    @functools.wraps(step)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(step, *args, **kwargs)

    wrapped.unwrapped = getattr(step, "unwrapped", step)  # type: ignore[attr-defined]
    module.__dict__["training_step"] = wrapped

    def restore() -> None:
        if own is None:
            module.__dict__.pop("training_step", None)
        else:
            module.__dict__["training_step"] = own

    return restore


def by_name(outputs: Any) -> dict[str, Tensor]:
    """Return logits as a mapping; a single tensor has the name ``""``."""
    if isinstance(outputs, Tensor):
        return {"": outputs}
    if isinstance(outputs, Mapping) and all(isinstance(value, Tensor) for value in outputs.values()):
        return dict(outputs)
    raise MisconfigurationException(
        f"replay: logits must be a tensor or a mapping of tensors, got {type(outputs).__name__}; pass predict_fn=."
    )
