"""CR-MOGM: task weights smoothed over the steps."""

from __future__ import annotations

from torch import Tensor


def cr_mogm(weights: Tensor, previous: Tensor, alpha: float = 0.9) -> Tensor:
    r"""Average the weights of any method over the steps (Zhou et al., NeurIPS 2022).

    .. math:: \lambda_t = \alpha \lambda_{t-1} + (1 - \alpha) w_t

    This reduces the correlation between the weights and the stochastic gradients that they multiply, which biases them.

    Args:
        weights: Weights :math:`w_t` from this step's gradients.
        previous: :math:`\lambda_{t-1}`, what the last call returned. At the first step, ``weights``.
        alpha: Decay of the moving average, in [0, 1].

    Shape:
        - weights, previous: ``(K,)``; returns ``(K,)``.

    Raises:
        ValueError: If ``alpha`` is outside of [0, 1].

    Note:
        The paper lets :math:`\alpha` tend to 1; as in TorchJD it is constant here, a schedule can pass any value.

    References:
        S. Zhou, W. Zhang, J. Jiang, W. Zhong, J. Gu, W. Zhu. *On the convergence of stochastic multi-objective gradient
        manipulation and beyond*. NeurIPS, 2022, Alg. 1.
        https://papers.nips.cc/paper_files/paper/2022/hash/f91bd64a3620aad8e70a27ad9cb3ca57-Abstract-Conference.html
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"cr_mogm: alpha must be between 0 and 1, got {alpha}; choose a decay such as 0.9.")
    return alpha * previous.detach().to(weights) + (1 - alpha) * weights.detach()
