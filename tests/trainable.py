"""The balancers that a Trainer can use with their defaults."""

from __future__ import annotations

import inspect

from lightning_mtl import balancers


def _trainable(name: str) -> bool:
    cls = getattr(balancers, name)
    if not (isinstance(cls, type) and issubclass(cls, balancers.Balancer)) or inspect.isabstract(cls):
        return False
    required = [
        p
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    return not required


TRAINABLE = sorted(filter(_trainable, balancers.__all__))
