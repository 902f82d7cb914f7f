"""One vector a task that is remembered between steps, and the methods that weight by more than the Gramian."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.engines import TaskGradients
from lightning_mtl.balancers.gradient_weighting.base import GradientBalancer, GradientOptions


class GradientMemory(nn.Module):
    """A vector with as many numbers as the gradient, for every task.

    It is empty until the first step, or until a state is loaded, tells the number of shared parameters. It is kept in
    at least float32, whatever the type of the gradients: K × P numbers, also in every checkpoint. It is no buffer, so
    that ``DistributedDataParallel`` does not send it around in every step: all processes compute the same.

    Args:
        num_tasks: K.
    """

    count: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.vectors = torch.zeros(num_tasks, 0)
        """One row a task."""
        self.register_buffer("count", torch.zeros(num_tasks))

    def fit(self, matrix: Tensor) -> None:
        """Allocate zeros for rows like these at the first call.

        Raises:
            ValueError: If the number of columns has changed.
        """
        tasks, known = self.vectors.shape
        if not known:
            dtype = torch.promote_types(matrix.dtype, self.vectors.dtype)
            self.vectors = torch.zeros(tasks, matrix.shape[1], dtype=dtype, device=matrix.device)
        elif known != matrix.shape[1]:
            raise ValueError(
                f"GradientMemory: remembers {known} numbers a task, the shared parameters now have {matrix.shape[1]}; "
                "call reset() on the balancer after parameters were frozen or added."
            )

    def step(self, rows: list[int]) -> Tensor:
        """Count one more step of these tasks; return their numbers of steps, ``(k,)``."""
        count = take(self.count, rows) + 1
        put(self.count, rows, count)
        return count

    def rows(self, rows: list[int]) -> Tensor:
        """Return the vectors of these tasks, ``(k, P)``; a view where all are asked for."""
        if len(rows) == len(self.vectors):
            return self.vectors
        return torch.stack([self.vectors[row] for row in rows])

    def store(self, rows: list[int], matrix: Tensor) -> None:
        """Put these vectors in place of the old ones."""
        for row, vector in zip(rows, matrix.unbind(), strict=True):
            self.vectors[row].copy_(vector)

    def move(self, rows: list[int], matrix: Tensor, steps: Tensor) -> None:
        """Go a fraction of the way to these vectors, in place.

        Args:
            rows: Rows in ascending order.
            matrix: Vectors, shape ``(k, P)``.
            steps: Fraction for each, shape ``(k,)``.
        """
        for row, vector, step in zip(rows, matrix.unbind(), steps.to(self.vectors.dtype).unbind(), strict=True):
            self.vectors[row].lerp_(vector.to(self.vectors.dtype), step)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientMemory:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.vectors = fn(self.vectors)
        return self

    def get_extra_state(self) -> Tensor:
        """Return the vectors."""
        return self.vectors

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what :meth:`get_extra_state` returned."""
        dtype = torch.promote_types(state.dtype, self.vectors.dtype)
        self.vectors = state.to(self.vectors.device, dtype, copy=True)


class MatrixWeighting(GradientBalancer):
    r"""A gradient method whose update is a weighted sum of the task gradients, and whose weights need these themselves.

    Subclasses implement :meth:`compute_weights`. With several processes each of them holds the whole matrix.

    Args:
        options: See :class:`GradientOptions`; ``at`` must be ``"parameters"`` and ``parameters`` must be ``"all"``.

    Raises:
        ValueError: If an option cannot work with the matrix.
    """

    compares_at: ClassVar[tuple[str, ...]] = ("parameters",)
    needs_matrix: ClassVar[bool] = True

    def __init__(self, **options: Unpack[GradientOptions]) -> None:
        name = type(self).__name__
        if options.get("parameters", "all") != "all":
            raise ValueError(f'{name}: compares gradients of several steps, so parameters must be "all".')
        if options.get("engine", "auto") == "mixed":
            raise ValueError(f'{name}: needs the matrix of gradients, which engine="mixed" never builds; use "auto".')
        super().__init__(**options)

    @abstractmethod
    def compute_weights(self, matrix: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the present tasks, and update the state.

        Called without gradients and without autocast, with finite values. The matrix is overwritten in the next step.

        Args:
            matrix: Gradients of the present tasks, shape ``(k, P)``, at least float32, alike on all processes, free of
                any loss scale.
            rows: Their rows in the state.

        Returns:
            Weights, shape ``(k,)``.
        """

    def _looks_at_once(self, device: torch.device) -> bool:
        return True  # the state is too large to be kept twice until the gradients are known to be finite

    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], unit: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        matrix = gradients.matrix()
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        if unit is not None:
            matrix = matrix / unit.to(matrix.dtype)
        weights = self.compute_weights(matrix, rows).to(gramian.dtype)
        return weights, gradients.combine(weights)


def simplex_part(state: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Return the weights of these tasks with sum 1, and their sum in the state.

    Absent tasks keep their weights: multiply new ones by the sum before they are put back.

    Args:
        state: Weights of all tasks, not negative.
        rows: Rows in ascending order. Where all of them are zero, the weights are equal.
    """
    part = take(state, rows)
    total = part.sum()
    return torch.where(total > 0, part / torch.where(total > 0, total, 1), 1 / len(rows)), total
