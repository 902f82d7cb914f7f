"""One code for two array libraries: NumPy for values on the host, torch for all others.

A K x K problem takes hundreds of operations on a few numbers each, of which torch's dispatcher costs most. On the CPU
the solvers therefore run on NumPy arrays, several times faster. The type also tells what a solver may do: it may look
at the values of a NumPy array, to stop early, but never at those of a tensor, which may live on an accelerator or in a
graph that is being traced. Both libraries share the names and arguments of all operations that are used.
"""

from __future__ import annotations

import contextlib
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or a ``torch.Tensor``."""


def solver_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_host(tensor: Tensor) -> bool:
    """Tell whether a tensor's values can be had for free: it is on the CPU and no compiler or fake mode traces it."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and type(tensor) is Tensor


def to_array(tensor: Tensor) -> Array:
    """Return a detached tensor in the solver's dtype, as a NumPy array if its values are on the host."""
    converted = tensor.detach().to(solver_dtype(tensor.device))
    return converted.numpy() if is_host(converted) else converted


def to_array_like(tensor: Tensor, like: Array) -> Array:
    """Return a detached tensor in the library, in the dtype and on the device of another array."""
    if isinstance(like, np.ndarray):
        return tensor.detach().to("cpu", torch.float64).numpy()
    return tensor.detach().to(like)


def library(array: Array) -> Any:
    """Return the module, ``numpy`` or ``torch``, that an array belongs to."""
    return np if isinstance(array, np.ndarray) else torch


def identity(like: Array) -> Array:
    """Return the identity matrix with as many rows as the last dimension of an array."""
    if isinstance(like, np.ndarray):
        return np.eye(like.shape[-1], dtype=like.dtype)
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def precision(array: Array) -> float:
    """Return the machine precision of an array's dtype."""
    return float(library(array).finfo(array.dtype).eps)


def quiet(array: Array) -> contextlib.AbstractContextManager[object]:
    """Silence NumPy's warnings about overflow and undefined values, which torch does not have."""
    return np.errstate(all="ignore") if isinstance(array, np.ndarray) else contextlib.nullcontext()


def solve_positive(matrix: Array, right: Array) -> Array:
    """Solve a batch of positive definite systems. Where a matrix is not positive definite, the values are arbitrary.

    Args:
        matrix: Symmetric matrices.
        right: Right-hand sides.

    Shape:
        - matrix: ``(..., K, K)``.
        - right: ``(..., K, R)``; returns ``(..., K, R)``.
    """
    if not isinstance(matrix, np.ndarray):
        return torch.cholesky_solve(right, torch.linalg.cholesky_ex(matrix).L)
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:  # one singular matrix stops the whole batch
        if matrix.ndim == 2:
            return np.full(right.shape, np.nan)
        return np.stack([solve_positive(*system) for system in zip(matrix, right, strict=True)])
