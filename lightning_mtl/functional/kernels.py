"""Tangent kernels: how they are computed, how far two of them are apart, how well they fit a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

_SKETCH_SIZE = 65_521  # the largest prime below 2**16: rows of a weight matrix do not line up with the buckets


def center_kernel(kernel: Tensor) -> Tensor:
    r"""Return :math:`HKH` with :math:`H = I - \tfrac1n 11^T`: the kernel of the centred features.

    Args:
        kernel: Symmetric matrix ``(n, n)``.
    """
    rows = kernel.mean(-1, keepdim=True)
    return kernel - rows - rows.mT + rows.mean(-2, keepdim=True)


def kernel_alignment(first: Tensor, second: Tensor, centered: bool = False) -> Tensor:
    r"""Return the cosine of two kernels, :math:`\langle K, L\rangle_F / (\|K\|_F \|L\|_F)`, a scalar.

    Args:
        first: Symmetric matrix ``(n, n)``.
        second: Symmetric matrix ``(n, n)``.
        centered: Centre both kernels first, which makes the value that of centred kernel alignment (linear CKA).

    Returns:
        A number in [0, 1] for positive semi-definite kernels; NaN if one of them is zero.

    Example:
        >>> kernel_alignment(torch.eye(2), torch.ones(2, 2))
        tensor(0.7071)

    References:
        Cristianini, Shawe-Taylor, Elisseeff, Kandola. *On Kernel-Target Alignment*. NIPS 2001.
        https://papers.nips.cc/paper/1946-on-kernel-target-alignment

        Cortes, Mohri, Rostamizadeh. *Algorithms for Learning Kernels Based on Centered Alignment*. JMLR 13, 2012.
        https://jmlr.org/papers/v13/cortes12a.html
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[0] != first.shape[1]:
        raise ValueError(
            f"kernel_alignment: kernels must be two (n, n) matrices, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}; compute them on the same samples."
        )
    if centered:
        first, second = center_kernel(first), center_kernel(second)
    cosine: Tensor = (first * second).sum() / (torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second))
    return cosine


def kernel_distance(kernel: Tensor, reference: Tensor) -> Tensor:
    """Return one minus the cosine of two kernels: 0 for kernels equal up to scale.

    Between the tangent kernel at initialization and the one now it measures how far training has left the lazy regime.

    Args:
        kernel: Symmetric matrix ``(n, n)``.
        reference: Symmetric matrix ``(n, n)``.

    Example:
        >>> kernel_distance(3 * torch.eye(4), torch.eye(4))
        tensor(0.)

    References:
        Fort, Dziugaite, Paul, Kharaghani, Roy, Ganguli. *Deep learning versus kernel learning: an empirical study of
        loss landscape geometry and the time evolution of the Neural Tangent Kernel*. NeurIPS 2020.
        https://arxiv.org/abs/2010.15110
    """
    return (1 - kernel_alignment(kernel, reference)).clamp(min=0)  # rounding may exceed a cosine of 1


def target_kernel(targets: Tensor) -> Tensor:
    """Return the kernel of the targets, ``(n, n)``: inner products of numbers, or of one-hot vectors for classes.

    Args:
        targets: One target a sample, ``(n, ...)``. Floating point targets are compared by their inner product, NaN
            counting as zero; integer ones are classes, negative values (and 255 in maps of classes) being no label.

    Example:
        >>> target_kernel(torch.tensor([2, 0, 2, -100]))
        tensor([[1., 0., 1., 0.],
                [0., 1., 0., 0.],
                [1., 0., 1., 0.],
                [0., 0., 0., 0.]])
    """
    rows = targets.reshape(len(targets), -1)
    if rows.is_floating_point():
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32)).nan_to_num(nan=0.0)
        return rows @ rows.mT
    if rows.dtype == torch.bool:
        return rows.float() @ rows.float().mT
    known = (rows >= 0) & ((rows != 255) | (targets.ndim < 3))
    return torch.stack(
        [((rows == row) & known & row_known).sum(1) for row, row_known in zip(rows, known, strict=True)]
    ).to(torch.float32)


def kernel_target_alignment(kernel: Tensor, targets: Tensor, centered: bool = False) -> Tensor:
    r"""Return how well a kernel fits a target: :math:`y^T K y / (\|K\|_F \|y\|^2)`, a scalar.

    For several columns it is the cosine of :math:`K` and :math:`Y Y^T`, for classes that of :math:`K` and the matrix
    that tells which samples share a class. The maximum 1 is reached if the kernel is a multiple of that matrix.

    Args:
        kernel: Symmetric matrix ``(n, n)``.
        targets: Numbers ``(n,)`` or ``(n, C)``, or classes ``(n,)``; see :func:`target_kernel`.
        centered: Centre kernel and targets first.

    Note:
        Sums of alignments over one-hot columns are sometimes divided by the sum of their squared norms; that value
        cannot reach 1 with more than one class, this one can.

    Example:
        >>> y = torch.tensor([1.0, -1.0])
        >>> round(kernel_target_alignment(torch.outer(y, y), y).item(), 4)
        1.0

    References:
        Cristianini, Shawe-Taylor, Elisseeff, Kandola. *On Kernel-Target Alignment*. NIPS 2001.
        https://papers.nips.cc/paper/1946-on-kernel-target-alignment
    """
    return kernel_alignment(kernel, target_kernel(targets).to(kernel.dtype), centered)


def kernel_difficulty(kernel: Tensor, targets: Tensor, ridge: float = 1e-6) -> Tensor:
    r"""Return how hard a target is for kernel regression: :math:`y^T \hat K^{-1} y / \|y\|^2`, a scalar.

    :math:`\hat K` is the kernel divided by the mean of its diagonal, plus ``ridge`` times the identity, so that the
    value does not depend on the scale of kernel or target. It is 1 where the kernel tells every sample from every other
    equally well, below 1 where the target lies in the kernel's leading directions, and large where it does not.

    Args:
        kernel: Symmetric positive semi-definite matrix ``(n, n)``.
        targets: Numbers ``(n,)`` or ``(n, C)``, or classes ``(n,)``; see :func:`target_kernel`.
        ridge: Added to the diagonal of the normalised kernel, positive.

    Raises:
        ValueError: If ``ridge`` is not positive.

    Example:
        >>> kernel_difficulty(5 * torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0]), ridge=1e-12)
        tensor(1.0000, dtype=torch.float64)

    References:
        Kumar, Bordelon, Gershman, Pehlevan. *Grokking as the Transition from Lazy to Rich Training Dynamics*. ICLR
        2024. https://arxiv.org/abs/2310.06110
    """
    return energy_under_inverse(kernel, target_kernel(targets).to(kernel.dtype), ridge)


def energy_under_inverse(kernel: Tensor, similarity: Tensor, ridge: float = 1e-6) -> Tensor:
    r"""Return :math:`\mathrm{tr}(\hat K^{-1} T) / \mathrm{tr}\, T`: :func:`kernel_difficulty` from the targets' kernel.

    Args:
        kernel: Symmetric positive semi-definite matrix ``(n, n)``.
        similarity: Kernel :math:`T = Y Y^T` of the targets ``(n, n)``.
        ridge: Added to the diagonal of the normalised kernel, positive.
    """
    if ridge <= 0:
        raise ValueError(f"kernel_difficulty: ridge must be positive, got {ridge}.")
    scaled = kernel / kernel.diagonal().mean()
    scaled = scaled + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    energy: Tensor = torch.linalg.solve(scaled, similarity).diagonal().sum() / similarity.diagonal().sum()
    return energy


class GradientSketch:
    """Random linear map of long vectors to short ones that keeps inner products, a sparse sign projection.

    Entries are multiplied by random signs and summed into buckets. Vectors that are short enough are returned as they
    are. The estimate of an inner product is unbiased; its standard deviation is about the product of the two norms
    divided by the square root of the number of buckets. Equal vectors have equal sketches, so a difference of sketches
    is the sketch of the difference.

    Args:
        size: Length of the vectors.
        max_size: Longest vector that is kept as it is, and number of buckets for longer ones.
        seed: Seed of the signs.

    Example:
        >>> sketch = GradientSketch(10_000, max_size=1009)
        >>> x = torch.ones(10_000)
        >>> sketch(x).shape, bool((sketch(x).square().sum() / x.square().sum() - 1).abs() < 0.15)
        (torch.Size([1009]), True)

    References:
        Charikar, Chen, Farach-Colton. *Finding frequent items in data streams*. ICALP 2002.
        https://doi.org/10.1007/3-540-45465-9_59
    """

    def __init__(self, size: int, max_size: int = _SKETCH_SIZE, seed: int = 0) -> None:
        self.size = min(size, max_size)
        self._padding = -size % self.size if size else 0
        self._signs: Tensor | None = None
        if size > max_size:
            signs = torch.randint(0, 2, (size,), generator=Generator().manual_seed(seed), dtype=torch.int8)
            self._signs = 2 * signs - 1

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the sketch of a vector."""
        if self._signs is None:
            return vector
        if self._signs.device != vector.device:
            self._signs = self._signs.to(vector.device)
        padded = torch.nn.functional.pad(vector * self._signs, (0, self._padding))
        return padded.view(-1, self.size).sum(0)


def output_directions(num_outputs: int, max_directions: int, seed: int = 0) -> Tensor:
    """Return directions in output space whose outer products sum to the identity, in expectation ``(R, num_outputs)``.

    With as many directions as outputs they are the axes and the trace kernel is exact; with fewer they are random
    and the trace kernel is an unbiased estimate.

    Args:
        num_outputs: Number of outputs of one sample.
        max_directions: Largest R.
        seed: Seed of the random directions.
    """
    if num_outputs <= max_directions:
        return torch.eye(num_outputs)
    random = torch.randn(max_directions, num_outputs, generator=Generator().manual_seed(seed))
    return random / math.sqrt(max_directions)


def output_gradients(
    output: Tensor,
    parameters: Sequence[Tensor],
    directions: Tensor,
    sketch: Callable[[Tensor], Tensor] | None = None,
    keep_graph: bool = False,
) -> Tensor:
    """Return the gradients of one sample's outputs with respect to the parameters, ``(R, P)``.

    Args:
        output: Outputs of one sample, with their graph.
        parameters: Tensors to differentiate by. Those without influence, or that need no gradient, count with zeros.
        directions: The R combinations of outputs to differentiate, ``(R, output.numel())``.
        sketch: Map of a gradient of length P to a shorter vector.
        keep_graph: Whether the graph is needed again.
    """
    flat = output.reshape(-1)
    directions = directions.to(flat)
    live = [parameter for parameter in parameters if parameter.requires_grad]
    rows = []
    for index, direction in enumerate(directions):
        again = keep_graph or index + 1 < len(directions)
        found = dict(
            zip(
                map(id, live),
                torch.autograd.grad(flat, live, direction, retain_graph=again, allow_unused=True),
                strict=True,
            )
        )
        pieces = []
        for parameter in parameters:
            gradient = found.get(id(parameter))
            pieces.append(torch.zeros_like(parameter) if gradient is None else gradient)
        row = torch.cat([piece.reshape(-1) for piece in pieces])
        row = row.to(torch.promote_types(row.dtype, torch.float32))
        rows.append(row if sketch is None else sketch(row))
    return torch.stack(rows)


def empirical_ntk(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    parameters: Sequence[Tensor],
    max_directions: int | None = None,
    max_gradient_size: int | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Return the empirical neural tangent kernel of a function at its parameters, ``(n, n)`` in float64.

    .. math:: K_{ij} = \sum_c \langle \nabla_\theta f_c(x_i), \nabla_\theta f_c(x_j) \rangle,

    the trace over the outputs :math:`c`. The function is evaluated sample by sample, so it may be anything that
    autograd can differentiate; it must not mix the samples of a batch (batch normalisation has to be in ``eval``).

    Args:
        function: From a batch of one sample to its outputs, for example a module.
        inputs: Samples ``(n, ...)``.
        parameters: Tensors to differentiate by.
        max_directions: Largest number of backward passes a sample; with more outputs, random combinations of them give
            an unbiased estimate (:func:`output_directions`). None takes one pass an output.
        max_gradient_size: Longest gradient that is kept exactly (:class:`GradientSketch`); None keeps all, which
            takes ``n`` times the memory of the parameters.
        seed: Seed of directions and sketch.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
        >>> linear = torch.nn.Linear(2, 1, bias=False)
        >>> empirical_ntk(linear, x, list(linear.parameters()))
        tensor([[1., 2.],
                [2., 5.]], dtype=torch.float64)

    References:
        Jacot, Gabriel, Hongler. *Neural Tangent Kernel: Convergence and Generalization in Neural Networks*. NeurIPS
        2018. https://arxiv.org/abs/1806.07572
    """
    size = sum(parameter.numel() for parameter in parameters)
    sketch = None if max_gradient_size is None else GradientSketch(size, max_gradient_size, seed)
    rows = []
    with torch.enable_grad():
        for sample in torch.split(inputs, 1):
            output = function(sample)
            limit = output.numel() if max_directions is None else max_directions
            directions = output_directions(output.numel(), limit, seed)
            rows.append(output_gradients(output, parameters, directions, sketch))
    return gram_of_rows(torch.stack(rows))


def gram_of_rows(rows: Tensor) -> Tensor:
    """Return the kernel ``(n, n)`` in float64 of gradients ``(n, R, P)``, summed over the R directions.

    Devices without float64 give float32.
    """
    flat = rows.reshape(len(rows), -1)
    if flat.device.type == "mps":
        return flat @ flat.mT
    exact = flat.double()
    return exact @ exact.mT
