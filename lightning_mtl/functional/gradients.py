"""Task gradients as tensors: their Gramian, what it tells, and handing a finished update to parameters."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

_BLOCK = 1 << 13  # columns summed in the matrix's own precision: K rows of them stay in a processor's cache
_WIDENED = 1 << 18  # columns of half precision that are widened at a time


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products of the rows of two matrices, accurate for rows of any length.

    Columns are taken in blocks whose products are summed in float64 (float32 on devices without it): a single product
    in float32 over the ten million columns of a network's gradients loses three digits, and is slower.

    Args:
        left: One vector a row, in float32 or float64.
        right: The same number of columns, in the same dtype.

    Shape:
        - left: ``(K, P)``; right: ``(J, P)``; returns ``(K, J)``.
    """
    columns = left.shape[1]
    if columns <= 4 * _BLOCK:
        return left @ right.T
    whole = columns // _BLOCK * _BLOCK
    tail = left[:, whole:] @ right[:, whole:].T
    wide = left.dtype if left.device.type == "mps" else torch.float64
    blocks = [matrix[:, :whole].view(len(matrix), -1, _BLOCK).transpose(0, 1) for matrix in (left, right)]
    products = torch.bmm(blocks[0], blocks[1].transpose(1, 2))
    return (products.sum(0, dtype=wide) + tail).to(left.dtype)


def gradient_rows(losses: Sequence[Tensor], parameters: Sequence[Tensor], keep_graph: bool = False) -> Tensor:
    """Return the gradient of every loss as one row, in at least float32.

    Args:
        losses: Scalars with their graph.
        parameters: What to differentiate by; zeros where a loss does not depend on one.
        keep_graph: Keep the graph of the losses for another pass.

    Shape:
        - K losses, P numbers in all parameters; returns ``(K, P)``.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> gradient_rows([x.sum(), x.square().sum()], [x])
        tensor([[1., 1.],
                [2., 4.]])
    """
    dtype = functools.reduce(torch.promote_types, (parameter.dtype for parameter in parameters), torch.float32)
    sizes = [parameter.numel() for parameter in parameters]
    matrix = torch.zeros(len(losses), sum(sizes), dtype=dtype, device=parameters[0].device)
    for index, (loss, row) in enumerate(zip(losses, matrix, strict=True)):
        again = keep_graph or index + 1 < len(losses)
        found = torch.autograd.grad(loss, parameters, retain_graph=again, allow_unused=True)
        for gradient, part in zip(found, row.split(sizes), strict=True):
            if gradient is not None:
                part.copy_(gradient.flatten())
    return matrix


def gramian(matrix: Tensor) -> Tensor:
    """Return the inner products of the rows, in at least float32; see :func:`row_products`.

    Rows in half precision are widened a block of columns at a time, so no second matrix is built.

    Args:
        matrix: One gradient a row.

    Shape:
        - matrix: ``(K, P)``; returns ``(K, K)``.

    Example:
        >>> gramian(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([[1., 1.],
                [1., 5.]])
    """
    if matrix.dtype in (torch.float32, torch.float64):
        return row_products(matrix, matrix)
    total = torch.zeros(len(matrix), len(matrix), device=matrix.device)
    for block in torch.split(matrix, _WIDENED, dim=1):
        wide = block.float()
        total += row_products(wide, wide)
    return total


def combine_rows(weights: Tensor, matrix: Tensor) -> Tensor:
    """Return the weighted sum of the rows, in the matrix's dtype but at least float32.

    Shape:
        - weights: ``(K,)``; matrix: ``(K, P)``; returns ``(P,)``.
    """
    if matrix.dtype in (torch.float32, torch.float64):
        return weights.to(matrix.dtype) @ matrix
    return torch.cat([weights.float() @ block.float() for block in torch.split(matrix, _WIDENED, dim=1)])


def gramian_norms(gram: Tensor) -> Tensor:
    """Return the norms of the gradients, ``(K,)``, from their Gramian ``(K, K)``."""
    return gram.diagonal().clamp(min=0).sqrt()


def gramian_cosines(gram: Tensor) -> Tensor:
    """Return the cosines between the gradients, ``(K, K)``; 0 with a zero gradient, 1 on the rest of the diagonal."""
    norms = gramian_norms(gram)
    inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return (gram * inverse[:, None] * inverse).clamp(-1, 1)


def conflict_share(gram: Tensor) -> Tensor:
    """Return the share of task pairs whose gradients have a negative inner product; 0 for a single task.

    Example:
        >>> conflict_share(torch.tensor([[1.0, -0.5, 0.2], [-0.5, 1.0, 0.1], [0.2, 0.1, 1.0]]))
        tensor(0.3333)
    """
    count = len(gram)
    if count < 2:
        return torch.zeros((), device=gram.device)
    negative = (gram < 0).triu(diagonal=1).sum()
    return negative / (count * (count - 1) / 2)


@contextlib.contextmanager
def tensor_hooks_off(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Silence the hooks that ``tensor.register_hook`` put on these tensors.

    A tensor hook of a leaf fires whenever its gradient is computed, also by :func:`torch.autograd.grad`. Inside this
    context the tables of hooks are empty; they are filled again on leaving, in their order.
    """
    silenced: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for tensor in tensors:
        hooks = tensor._backward_hooks
        if hooks:
            silenced.append((hooks, dict(hooks)))
            hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in silenced:
            hooks.update(kept)


class _Injection(torch.autograd.Function):
    """A scalar with a given value, whose backward hands given gradients to given tensors."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, factor: Tensor | None, keep: Tensor | None, gradients: list[Tensor], *tensors: Tensor
    ) -> Tensor:
        ctx.factor, ctx.keep, ctx.gradients, ctx.count = factor, keep, gradients, len(gradients)
        ctx.set_materialize_grads(False)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        if grad_output is None:
            return (None,) * int(4 + ctx.count)
        if gradients is None:
            raise RuntimeError(
                "the scalar of a gradient balancer was passed backward twice; keep its graph with "
                "backward(retain_graph=True) the first time."
            )
        factor = grad_output if ctx.factor is None else grad_output * ctx.factor
        if ctx.keep is not None:
            scaled = [torch.where(ctx.keep, gradient * factor, torch.zeros_like(gradient)) for gradient in gradients]
        elif any(gradient.device != factor.device for gradient in gradients):
            scaled = [gradient * factor.to(gradient.device) for gradient in gradients]
        elif _graph_is_kept():
            scaled = list(torch._foreach_mul(gradients, factor))
        else:  # nobody will ask again: multiply in place, and leave the leaves as the only owners
            scaled, ctx.gradients = gradients, None
            if factor.device.type != "cpu" or float(factor) != 1.0:
                torch._foreach_mul_(scaled, factor)
        return (None, None, None, None, *scaled)


def _graph_is_kept() -> bool:
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is None or bool(kept())


def inject(
    value: Tensor,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor],
    factor: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Return a scalar with this value whose backward adds these gradients to these tensors.

    The gradients are multiplied by whatever gradient reaches the scalar, so loss scales and the divisor of gradient
    accumulation act on them as on any loss. Leaves take them over without a copy; all hooks of the tensors fire once.
    The gradients belong to the scalar from now on: unless its graph is kept, its backward changes them in place.

    Args:
        value: Value of the scalar; it is detached.
        tensors: Parameters or intermediate results that require a gradient.
        gradients: One for each, of its shape and dtype.
        factor: Scalar tensor by which all gradients are multiplied.
        keep: Boolean scalar tensor; if it is false, the gradients are zero, even where they are not finite.

    Example:
        >>> point = torch.zeros(2, requires_grad=True)
        >>> inject(torch.tensor(5.0), [point], [torch.tensor([1.0, 2.0])]).mul(3).backward()
        >>> point.grad
        tensor([3., 6.])
    """
    with torch.enable_grad():
        return cast(Tensor, _Injection.apply(value.detach(), factor, keep, list(gradients), *tensors))


class _Relay(torch.autograd.Function):
    """A scalar with a given value, whose gradient goes to another scalar and is noted on its way."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, value: Tensor, note: list[Tensor]) -> Tensor:
        ctx.note = note
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        ctx.note[:] = [grad_output]
        return grad_output, None, None


def redirect(
    value: Tensor,
    total: Tensor,
    edges: Sequence[tuple[Any, int]],
    gradients: Sequence[Tensor],
    factor: Tensor | None = None,
    replace: bool = True,
) -> Tensor:
    """Return a scalar with this value whose backward is that of ``total``, except for what passes certain edges.

    Other than with :func:`inject`, everything above the edges takes part in the backward pass in the ordinary way, as
    modules whose parameters are sharded need it.

    Args:
        value: Value of the scalar.
        total: Scalar with a graph.
        edges: Edges of its graph, as pairs of a node that is no leaf and the number of an output.
        gradients: What goes through the edges, times whatever gradient reaches the scalar.
        factor: Scalar tensor by which all gradients are multiplied.
        replace: Whether they stand for what would pass the edge otherwise; they are added to it if not.
    """
    note: list[Tensor] = []

    def hook(number: int, gradient: Tensor) -> Any:
        def changed(incoming: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            if not note:  # a backward pass that began elsewhere
                return incoming
            scale = note[0] if factor is None else note[0] * factor
            new, before = gradient * scale, incoming[number]
            both = new if replace or before is None else before + new
            return (*incoming[:number], both, *incoming[number + 1 :])

        return changed

    for (node, number), gradient in zip(edges, gradients, strict=True):
        node.register_prehook(hook(number, gradient))
    with torch.enable_grad():
        return cast(Tensor, _Relay.apply(total, value.detach(), note))


def flat_tensors(nest: Any) -> list[Tensor]:
    """Return the tensors in a nest of mappings, lists and tuples, in order, each one once."""
    found: dict[int, Tensor] = {}

    def visit(part: Any) -> None:
        if isinstance(part, Tensor):
            found.setdefault(id(part), part)
        elif isinstance(part, Mapping):
            for item in part.values():
                visit(item)
        elif isinstance(part, list | tuple):
            for item in part:
                visit(item)

    visit(nest)
    return list(found.values())


def alias_features(features: Any) -> Any:
    """Return the same nest with every tensor replaced by a view of itself.

    Heads that read an alias of the features each have nothing in common in the autograd graph, so that the gradients of
    all tasks at the features can be taken in one pass of the heads. An alias costs no memory.

    Args:
        features: A tensor, or a nest of mappings, lists and tuples of tensors; anything else is returned as it is.
    """
    if isinstance(features, Tensor):
        return features.view_as(features) if features.requires_grad and not features.is_leaf else features
    if isinstance(features, Mapping):
        return {key: alias_features(item) for key, item in features.items()}
    if isinstance(features, tuple) and hasattr(features, "_fields"):
        return type(features)(*map(alias_features, features))
    if isinstance(features, list | tuple):
        return type(features)(map(alias_features, features))
    return features
