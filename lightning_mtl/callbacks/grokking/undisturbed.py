"""Run a network in the middle of training without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lightning_mtl.functional.gradients import tensor_hooks_off


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate a module with gradients; afterwards modes, buffers and random states are what they were.

    The module is in ``eval`` mode inside, autograd is on even within Lightning's inference mode, autocast is off, and
    compiled parts run uncompiled. Hooks of parameters are silent; hooks of modules, which may be part of the network,
    are not. Parameters and their ``.grad`` are the business of whoever runs inside: use
    ``torch.autograd.grad``.

    Args:
        module: The module that will be run.
    """
    modes = [(child, child.training) for child in module.modules()]
    buffers = [buffer for buffer in module.buffers() if not buffer.is_inference()]
    before = [(buffer.detach().clone(), buffer._version) for buffer in buffers]
    device = next((tensor.device.type for tensor in (*module.parameters(), *module.buffers())), "cpu")
    module.eval()
    try:
        with (
            isolate_rng(),
            tensor_hooks_off(list(module.parameters())),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
            _uncompiled(),
        ):
            yield
    finally:
        for child, training in modes:
            child.training = training
        with torch.no_grad():
            for buffer, (value, version) in zip(buffers, before, strict=True):
                if buffer._version != version:  # a module that counts or averages in eval mode as well
                    buffer.copy_(value)


def _uncompiled() -> AbstractContextManager[None]:
    """Return a context in which ``torch.compile`` is without effect: samples one by one have another shape."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    return nullcontext() if set_stance is None else cast(AbstractContextManager[None], set_stance("force_eager"))
