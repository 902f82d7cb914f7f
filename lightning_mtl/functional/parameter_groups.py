"""Parameter groups for optimizers: learning rates by fan-in, weight decay that does not follow the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim.optimizer import ParamsT


def independent_weight_decay(learning_rate: float, weight_decay: float) -> float:
    r"""Return the ``weight_decay`` to give ``torch.optim.AdamW`` so that the decay does not follow the learning rate.

    torch multiplies parameters by :math:`1 - s_t \eta\,\lambda'` with peak learning rate :math:`\eta` and schedule
    :math:`s_t`; with :math:`\lambda' = \lambda / \eta` the factor is :math:`1 - s_t \lambda`.

    Args:
        learning_rate: Peak learning rate, positive.
        weight_decay: Independent decay λ.

    Raises:
        ValueError: If the learning rate is not positive or the decay is negative.

    Example:
        >>> round(independent_weight_decay(learning_rate=0.01, weight_decay=1e-4), 6)
        0.01

    References:
        Loshchilov, Hutter. *Decoupled Weight Decay Regularization*. ICLR 2019. https://arxiv.org/abs/1711.05101.
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.2.
    """
    if not learning_rate > 0:
        raise ValueError(f"independent_weight_decay: learning_rate must be positive, got {learning_rate}.")
    if weight_decay < 0:
        raise ValueError(f"independent_weight_decay: weight_decay must not be negative, got {weight_decay}.")
    return weight_decay / learning_rate


class IndependentAdamW(torch.optim.AdamW):
    r"""AdamW whose weight decay follows the schedule but not the learning rate.

    .. math:: \theta \leftarrow \theta - s_t\,(\eta\,\Delta + \lambda\,\theta), \qquad
        \Delta = \hat m / (\sqrt{\hat v} + \epsilon)

    with peak learning rate :math:`\eta`, schedule :math:`s_t` in [0, 1] and decay :math:`\lambda`. The peak is read
    from the parameter group: ``max_lr`` of a one-cycle or cyclic scheduler, else ``initial_lr``, which every scheduler
    writes when it is made, else the present learning rate (:math:`s_t = 1`).

    Args:
        params: Parameters or parameter groups.
        lr: Peak learning rate.
        betas: Decay rates of the two averages.
        eps: Added to the denominator.
        weight_decay: Independent decay λ.
        amsgrad: Whether to divide by the largest second moment so far.

    Note:
        The paper prints the decay with the opposite sign within the bracket; the shrinking sign above is the one meant.
        With one fixed learning rate it equals ``AdamW(weight_decay=independent_weight_decay(lr, weight_decay))``; it
        differs where the learning rate is scaled afterwards, by a sweep, a multiplier or a callback.

    References:
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step.

        Args:
            closure: Computes the loss anew; its value is returned.
        """
        if closure is not None:  # it may change groups, so it runs before they are read
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                peak = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
                group["weight_decay"] = group["weight_decay"] / peak if peak > 0 else 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return None if closure is None else loss


def mup_simple_groups(
    module: nn.Module, learning_rate: float, base_fan_in: int, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    r"""Split parameters into groups whose learning rate falls with the fan-in (μParam, simple variant).

    Weight matrices of linear, attention and convolution layers learn at :math:`\eta\, f_0 / f` with fan-in :math:`f`;
    embeddings, norms and biases at :math:`\eta`. Found at the width :math:`f_0`, :math:`\eta` then carries over to
    other widths under Adam.

    Args:
        module: The network.
        learning_rate: η, the rate of a layer with ``base_fan_in`` inputs.
        base_fan_in: Fan-in at which the rate was tuned.
        weight_decay: Independent decay λ of every parameter; stored in each group as λ over the group's rate, as
            ``torch.optim.AdamW`` needs it.

    Returns:
        Groups for an optimizer, with ``params``, ``lr``, ``weight_decay`` and a ``name``.

    Raises:
        ValueError: If a number is not positive, or the module has nothing to train.

    Note:
        The simple variant scales learning rates only. The paper's full one adds an attention scale of ``1 / d_h``, a
        smaller head and zero queries at initialisation. A head that is tied to an embedding counts as embedding.

    Example:
        >>> net = nn.Sequential(nn.Linear(256, 64), nn.LayerNorm(64), nn.Linear(64, 10))
        >>> groups = mup_simple_groups(net, learning_rate=0.01, base_fan_in=64)
        >>> [(group["name"], group["lr"]) for group in groups]
        [('other', 0.01), ('fan_in_64', 0.01), ('fan_in_256', 0.0025)]

    References:
        Yang, Hu, Babuschkin, Sidor, Liu, Farhi, Ryder, Pachocki, Chen, Gao. *Tensor Programs V: Tuning Large Neural
        Networks via Zero-Shot Hyperparameter Transfer*. NeurIPS 2021. https://arxiv.org/abs/2203.03466.
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.2.
    """
    if not learning_rate > 0:
        raise ValueError(f"mup_simple_groups: learning_rate must be positive, got {learning_rate}.")
    if base_fan_in < 1:
        raise ValueError(f"mup_simple_groups: base_fan_in must be positive, got {base_fan_in}.")
    fan_ins = _fan_ins(module)
    by_fan_in: dict[int, list[Tensor]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            by_fan_in.setdefault(fan_ins.get(id(parameter), 0), []).append(parameter)
    if not by_fan_in:
        raise ValueError("mup_simple_groups: the module must have parameters that are trained, got none.")
    groups = []
    for fan_in in sorted(by_fan_in):
        rate = learning_rate * base_fan_in / fan_in if fan_in else learning_rate
        groups.append(
            {
                "params": by_fan_in[fan_in],
                "lr": rate,
                "weight_decay": independent_weight_decay(rate, weight_decay),
                "name": f"fan_in_{fan_in}" if fan_in else "other",
            }
        )
    return groups


def _fan_ins(module: nn.Module) -> dict[int, int]:
    """Return the fan-in of every weight matrix, by the parameter's id."""
    found: dict[int, int] = {}
    embeddings: set[int] = set()
    for child in module.modules():
        if isinstance(child, nn.Embedding | nn.EmbeddingBag):
            embeddings.add(id(child.weight))
        elif isinstance(child, nn.Linear):
            found[id(child.weight)] = child.in_features
        elif isinstance(child, nn.Bilinear):
            found[id(child.weight)] = child.in1_features * child.in2_features
        elif isinstance(child, _ConvTransposeNd):
            found[id(child.weight)] = child.weight.shape[0] * math.prod(child.kernel_size)
        elif isinstance(child, _ConvNd):
            found[id(child.weight)] = math.prod(child.weight.shape[1:])
        elif isinstance(child, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                weight = getattr(child, name)
                if weight is not None:
                    found[id(weight)] = weight.shape[1]
    return {key: fan_in for key, fan_in in found.items() if key not in embeddings}
