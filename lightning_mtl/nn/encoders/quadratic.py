"""A network with one hidden layer and a polynomial activation of degree 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class QuadraticNetwork(nn.Module, Recorded):
    r"""One hidden layer with the activation :math:`\phi(h) = a h + \tfrac b2 h^2`, without biases.

    .. math:: f_c(x) = \sum_{i=1}^N r_{ci}\, \phi(w_i \cdot x)

    With the defaults it is the student of the polynomial regression study of Kumar et al.: read-out fixed at
    :math:`r_{ci} = 1/N`, weights :math:`w_i \sim N(0, I)`, and :math:`b = \varepsilon` small, which makes the tangent
    kernel at initialization nearly linear and hence blind to a quadratic target. With ``linear=0, quadratic=2,
    train_readout=True`` it is a network with squares as activation, which can learn modular arithmetic.

    Args:
        in_features: Number of values of one sample. Samples of any shape with as many values are flattened.
        hidden: Number N of hidden units.
        out_features: Number of outputs.
        linear: Coefficient a of the activation.
        quadratic: Coefficient b of the activation.
        weight_std: Standard deviation of the initial weights.
        train_readout: Draw the read-out from :math:`N(0, 1/N)` and train it; otherwise it is fixed at
            :math:`1/N`, with one output, and random signs over N with several.

    Shape:
        - inputs: ``(B, ...)`` with ``in_features`` values per sample; returns ``(B, out_features)``.

    Raises:
        ValueError: If a size or ``weight_std`` is not positive.

    Example:
        >>> network = QuadraticNetwork(in_features=50)
        >>> network(torch.zeros(2, 50)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([2, 1]), 10000)

    References:
        Kumar, Bordelon, Gershman, Pehlevan. *Grokking as the Transition from Lazy to Rich Training Dynamics*. ICLR
        2024. https://arxiv.org/abs/2310.06110

        Gromov. *Grokking modular arithmetic*. 2023. https://arxiv.org/abs/2301.02679 (the network of squares).
    """

    readout: Tensor

    def __init__(
        self,
        in_features: int,
        hidden: int = 200,
        out_features: int = 1,
        linear: float = 1.0,
        quadratic: float = 0.1,
        weight_std: float = 1.0,
        train_readout: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("hidden", hidden), ("out_features", out_features)):
            if value < 1:
                raise ValueError(f"QuadraticNetwork: {name} must be at least 1, got {value}.")
        if weight_std <= 0:
            raise ValueError(f"QuadraticNetwork: weight_std must be positive, got {weight_std}.")
        self.linear = linear
        self.quadratic = quadratic
        self.weight = nn.Parameter(weight_std * torch.randn(hidden, in_features))
        if train_readout:
            self.readout = nn.Parameter(torch.randn(out_features, hidden) / hidden**0.5)
        else:
            signs = torch.ones(1, hidden) if out_features == 1 else torch.randn(out_features, hidden).sign()
            self.register_buffer("readout", signs)
        self.divisor = 1 if train_readout else hidden
        self.feature_spec = FeatureSpec("vector", (out_features,))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs ``(B, out_features)`` of a batch."""
        hidden = inputs.flatten(1) @ self.weight.T
        active = hidden * (self.linear + 0.5 * self.quadratic * hidden)
        return active @ self.readout.T / self.divisor
