"""The balancers that a Trainer can use with their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from lightning_mtl import balancers
from lightning_mtl.balancers import MGDA, Balancer, FlatRegions, TrimmedMean


def _trainable(name: str) -> bool:
    cls = getattr(balancers, name)
    if not (isinstance(cls, type) and issubclass(cls, balancers.Balancer)) or inspect.isabstract(cls):
        return False
    if getattr(cls, "needs_rotated_features", False):  # tested in tests/balancers/test_rotograd.py
        return False
    if cls.needs_validation_losses:  # tested in tests/callbacks/test_validation_losses.py
        return False
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters)


_WRAPPED: dict[str, Callable[[], Balancer]] = {
    "FlatRegions of MGDA": lambda: FlatRegions(MGDA(), 0.5),
    "FlatRegions of TrimmedMean, direct": lambda: FlatRegions(
        TrimmedMean(trim_number=1), 0.2, adaptive=False, aggregate="direct", norm_scope="joint"
    ),
}

TRAINABLE = [*sorted(filter(_trainable, balancers.__all__)), *_WRAPPED]


def build(name: str) -> Balancer:
    """Return a new balancer of this name."""
    balancer: Balancer = _WRAPPED[name]() if name in _WRAPPED else getattr(balancers, name)()
    return balancer
