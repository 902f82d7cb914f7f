"""One flat matrix for the gradients of all tasks, kept between steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.functional.gradients import combine_rows, gramian


class FlatStore:
    """A ``(K, P)`` matrix that is allocated once and reused, with a view of every row for every parameter.

    Views have the strides of their parameters, so that gradients handed out from it are taken over without a copy
    whatever the memory format. Rows are padded such that every process can own an equal share of the columns.

    Args:
        dtype: Type in which gradients are stored; None takes that of the parameters.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self._matrix: Tensor | None = None
        self._views: list[list[Tensor]] = []
        self._layout: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> FlatStore:
        return FlatStore(self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**FlatStore(self.dtype).__dict__}

    def rows(self, count: int, like: Sequence[Tensor]) -> FlatRows:
        """Return ``count`` rows that are laid out for these parameters; what they held before is lost.

        Raises:
            ValueError: If the parameters lie on several devices.
        """
        devices = {tensor.device for tensor in like}
        if len(devices) > 1:
            raise ValueError(
                f"the shared parameters must lie on one device, got {sorted(map(str, devices))}; "
                'balance such models with at="features".'
            )
        world = dist.get_world_size() if is_distributed() else 1
        layout = (tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in like), devices, world)
        if layout != self._layout or self._matrix is None or len(self._matrix) < count:
            size = sum(tensor.numel() for tensor in like)
            dtype = self.dtype or functools.reduce(torch.promote_types, (tensor.dtype for tensor in like))
            self._matrix, self._views = None, []  # frees the old one first
            self._matrix = torch.zeros(count, -(-size // world) * world, dtype=dtype, device=like[0].device)
            self._views = [row_views(row, like) for row in self._matrix]
            self._layout = layout
        return FlatRows(self._matrix[:count], self._views[:count], list(like), world)


def row_views(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a flat row in the shapes and strides of these tensors."""
    views, start = [], row.storage_offset()
    for tensor in like:
        dense = torch.empty_like(tensor, device="meta")  # dense strides, also for parameters that have gaps
        views.append(row.as_strided(dense.shape, dense.stride(), start))
        start += tensor.numel()
    return views


class FlatRows:
    """The part of a :class:`FlatStore` that one step uses.

    With several processes every finished row is averaged at once in the background: each process receives its share of
    the columns (or the whole row where the backend cannot scatter).
    """

    def __init__(self, matrix: Tensor, views: list[list[Tensor]], like: list[Tensor], world: int) -> None:
        self.matrix = matrix
        self.views = views
        self.like = like
        self.world = world
        self.size = sum(tensor.numel() for tensor in like)
        self._share: Tensor | None = None
        self._pending: list[Any] = []

    def write(self, row: int, gradients: Sequence[Tensor | None]) -> None:
        """Store the gradients of a task; None is zero."""
        views = self.views[row]
        pairs = [(view, gradient) for view, gradient in zip(views, gradients, strict=True) if gradient is not None]
        if len(pairs) < len(views):
            for view, gradient in zip(views, gradients, strict=True):
                if gradient is None:
                    view.zero_()
        if pairs:
            torch._foreach_copy_([view for view, _ in pairs], [gradient for _, gradient in pairs])

    def add(self, row: int, gradients: Sequence[Tensor | None]) -> None:
        """Add to the gradients of a task; None is zero."""
        pairs = [(view, part) for view, part in zip(self.views[row], gradients, strict=True) if part is not None]
        if pairs:
            torch._foreach_add_([view for view, _ in pairs], [part.to(view.dtype) for view, part in pairs])

    def send(self, row: int) -> None:
        """Begin to average this row over the processes; does nothing with one process."""
        if self.world == 1:
            return
        if self._share is None:
            self._share = self.matrix.new_empty(len(self.matrix), self.matrix.shape[1] // self.world)
        source = self.matrix[row]
        work = _scatter(self._share[row], source)
        if work is not None:
            self._pending.append((work, None, row))
        else:
            whole = source.clone()
            self._pending.append((dist.all_reduce(whole, async_op=True), whole, row))

    def gramian_share(self) -> Tensor:
        """Return this process's part of the Gramian of the averaged rows."""
        if self.world == 1:
            return gramian(self.matrix)
        share = self._received()
        return gramian(share) / self.world**2

    def _received(self) -> Tensor:
        if self._share is None:
            raise RuntimeError("no row was sent.")
        width = self._share.shape[1]
        for work, whole, row in self._pending:
            work.wait()
            if whole is not None:
                start = dist.get_rank() * width
                self._share[row] = whole[start : start + width]
        self._pending = []
        return self._share

    def averaged(self) -> Tensor:
        """Return the whole matrix, averaged over the processes, without the padding."""
        if self.world == 1:
            return self.matrix[:, : self.size]
        whole = self.matrix.clone()
        dist.all_reduce(whole)
        return (whole / self.world)[:, : self.size]

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum of this process's rows, one tensor a parameter."""
        return self.split(combine_rows(weights, self.matrix))

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector into tensors like the parameters."""
        return [view.to(tensor.dtype) for view, tensor in zip(row_views(vector, self.like), self.like, strict=True)]

    def drop(self, tasks: Sequence[int]) -> None:
        """Set these rows to zero."""
        for task in tasks:
            self.matrix[task].zero_()


_cannot_scatter: set[str] = set()


def _scatter(share: Tensor, source: Tensor) -> Any:
    """Begin to sum and share out a row; return the handle, or None where the backend cannot (gloo in older torch)."""
    backend = str(dist.get_backend())
    if backend in _cannot_scatter:
        return None
    try:
        return dist.reduce_scatter_tensor(share, source, async_op=True)
    except (NotImplementedError, RuntimeError) as error:
        if "support" not in str(error):
            raise
        _cannot_scatter.add(backend)
        return None
