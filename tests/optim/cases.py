"""Every public optimizer with small arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from lightning_mtl.optim import MTAdamW

RATIOS = {"a": 0.7, "b": 0.3}

CASES: dict[str, Callable[[Iterable[Any]], Optimizer]] = {
    "MTAdamW": lambda params: MTAdamW(params, lr=0.01, task_ratios=RATIOS),
    "MTAdamW-weighted": lambda params: MTAdamW(params, lr=0.01, task_ratios=RATIOS, task_weights={"b": 2.0}),
    "MTAdamW-normalised-only": lambda params: MTAdamW(params, lr=0.01, compensate=False),
    "MTAdamW-compensated-only": lambda params: MTAdamW(params, lr=0.01, task_ratios=RATIOS, normalize="none"),
}

# TaskAwareOptimizer is the protocol that test_contract.py checks.
