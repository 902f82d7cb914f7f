"""The multiple-gradient descent algorithm."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import mgda


class MGDA(GradientWeighting):
    r"""Follow the shortest vector in the convex hull of the gradients (Désidéri 2012; Sener & Koltun, NeurIPS 2018).

    .. math:: \alpha = \arg\min_{\alpha \ge 0, \sum_k \alpha_k = 1} \Big\| \sum_k \alpha_k \frac{g_k}{n_k} \Big\|^2,
        \qquad w_k = \alpha_k / n_k

    The update harms no task, and is zero exactly at Pareto stationary points. No state. The upper bound of Sener &
    Koltun (MGDA-UB) is ``at="features"``.

    Args:
        normalization: What the gradients are divided by: :math:`n_k` is 1 (``"none"``, the theory), the norm of the
            gradient (``"l2"``), the loss (``"loss"``), or their product (``"loss+"``, the authors' choice on
            Multi-MNIST).
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not negative, with sum 1 for ``normalization="none"``.

    Raises:
        ValueError: If ``normalization`` is unknown.

    Note:
        The minimum is exact. The Frank-Wolfe iterations of the authors and of TorchJD stop with weights that are off by
        1 to 10 %; LibMTL keeps the weights of two tasks within 0.001 and 0.999 and fails for squared norms above 1e8.
        As in LibMTL the weights of the normalized forms belong to the normalized gradients. A task with zero gradient
        takes all the weight: the minimum is the zero update.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = MGDA()
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(0.8000), tensor(0.2000))
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.8000, 0.4000])

    References:
        Désidéri. *Multiple-gradient descent algorithm (MGDA) for multiobjective optimization*. Comptes Rendus
        Mathématique 2012. https://doi.org/10.1016/j.crma.2012.03.014.
        Sener, Koltun. *Multi-Task Learning as Multi-Objective Optimization*. NeurIPS 2018.
        https://arxiv.org/abs/1810.04650, Eq. 3 and Sec. 3.3. Authors' code:
        https://github.com/isl-org/MultiObjectiveOptimization, MIT.
    """

    def __init__(
        self, normalization: Literal["none", "l2", "loss", "loss+"] = "none", **options: Unpack[GradientOptions]
    ) -> None:
        super().__init__(**options)
        if normalization not in ("none", "l2", "loss", "loss+"):
            raise ValueError(
                f"MGDA: normalization must be 'none', 'l2', 'loss' or 'loss+', got {normalization!r}; choose one."
            )
        self.normalization = normalization
        self.weight_degree = -1 if normalization in ("l2", "loss+") else 0

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the point of smallest norm."""
        return mgda(gramian, self.normalization, losses)
