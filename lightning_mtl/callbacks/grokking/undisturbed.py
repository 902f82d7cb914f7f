"""Run a network in the middle of training without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lightning_mtl.functional.gradients import tensor_hooks_off
from lightning_mtl.functional.modes import modes_kept


@contextmanager
def undisturbed(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Evaluate a module with gradients; afterwards modes, buffers and random states are what they were.

    The module is in ``eval`` mode inside unless ``training`` is set, autograd is on even within Lightning's inference
    mode, autocast is off, and compiled parts run uncompiled. Buffers are replaced by copies, so that the tensors
    themselves, and graphs that hold them, never notice. Hooks of parameters are silent; hooks of modules, which may be
    part of the network, are not. Parameters and their ``.grad`` are the business of whoever runs inside: use
    ``torch.autograd.grad``.

    Args:
        module: The module that will be run.
        training: Leave the modes of the module and its parts as they are.
    """
    buffers = [
        (child, name, buffer)
        for child in module.modules()
        for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False)
    ]
    device = next((tensor.device.type for tensor in (*module.parameters(), *module.buffers())), "cpu")
    try:
        with (
            modes_kept(module),
            isolate_rng(),
            tensor_hooks_off(list(module.parameters())),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
            _uncompiled(),
        ):
            if not training:
                module.eval()
            copies = {id(buffer): buffer.detach().clone() for _, _, buffer in buffers}
            for child, name, buffer in buffers:
                setattr(child, name, copies[id(buffer)])
            yield
    finally:
        for child, name, buffer in buffers:
            setattr(child, name, buffer)


def _uncompiled() -> AbstractContextManager[None]:
    """Return a context in which ``torch.compile`` is without effect: samples one by one have another shape."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    return nullcontext() if set_stance is None else cast(AbstractContextManager[None], set_stance("force_eager"))
