"""Layers that can run with the first part of their channels."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Plain = TypeVar("_Plain", bound=nn.Module)


def make_divisible(value: float, divisor: int = 8, min_value: int | None = None) -> int:
    """Round to a multiple of ``divisor``, at most a tenth below the value.

    Args:
        value: Number of channels wanted.
        divisor: What the result is a multiple of.
        min_value: Smallest result; None is ``divisor``.

    Raises:
        ValueError: If ``divisor`` is not positive.

    Example:
        >>> make_divisible(73.1), make_divisible(22.7), make_divisible(10)
        (72, 24, 16)

    References:
        Yu, Huang. *Universally Slimmable Networks and Improved Training Techniques*. ICCV 2019.
        https://arxiv.org/abs/1903.05134.
    """
    if divisor < 1:
        raise ValueError(f"make_divisible: divisor must be positive, got {divisor}.")
    rounded = max(divisor if min_value is None else min_value, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def active_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Return how many of a layer's channels are active at a width; never more than there are.

    Args:
        channels: Number of channels at width 1.
        width: Fraction of them.
        divisor: What the number is a multiple of, at widths below 1.

    Example:
        >>> active_channels(48, 0.25), active_channels(10, 1.0), active_channels(4, 0.5)
        (16, 10, 4)
    """
    return channels if width == 1 else min(channels, make_divisible(channels * width, divisor))


class SlimmableLayer(nn.Module, ABC):
    """Base of the layers of which a leading slice of the channels takes part.

    ``slim`` chooses the slice; ``export`` gives a plain layer that holds a copy of it. All channels are active at
    first.
    """

    active_in: int
    active_out: int

    @abstractmethod
    def slim(self, active_in: int, active_out: int) -> None:
        """Choose the number of input and output channels that take part.

        Raises:
            ValueError: If a number is not between 1 and the number of channels.
        """

    @abstractmethod
    def export(self) -> nn.Module:
        """Return a plain layer with a copy of the active part."""

    def _check(self, argument: str, active: int, channels: int) -> None:
        if not 1 <= active <= channels:
            raise ValueError(f"{type(self).__name__}: {argument} must be from 1 to {channels}, got {active}.")


class SlimmableLinear(nn.Linear, SlimmableLayer):
    """A fully connected layer whose first rows and columns can work alone.

    Args:
        in_features: Width of the input when all of it is active.
        out_features: Width of the output when all of it is active.
        bias: Whether a bias is added.

    Shape:
        - inputs: ``(..., active_in)``; returns ``(..., active_out)``.

    Raises:
        ValueError: By ``slim``, if a number is out of range.

    Example:
        >>> import torch
        >>> layer = SlimmableLinear(8, 6)
        >>> layer.slim(4, 3)
        >>> layer(torch.zeros(2, 4)).shape, layer.export()
        (torch.Size([2, 3]), Linear(in_features=4, out_features=3, bias=True))

    References:
        Yu, Yang, Xu, Yang, Huang. *Slimmable Neural Networks*. ICLR 2019. https://arxiv.org/abs/1812.08928.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.active_in, self.active_out = in_features, out_features

    def slim(self, active_in: int, active_out: int) -> None:
        """Choose the number of columns and rows that take part."""
        self._check("active_in", active_in, self.in_features)
        self._check("active_out", active_out, self.out_features)
        self.active_in, self.active_out = active_in, active_out

    def _active(self) -> tuple[Tensor, Tensor | None]:
        bias: Tensor | None = self.bias
        return self.weight[: self.active_out, : self.active_in], None if bias is None else bias[: self.active_out]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the active outputs."""
        return F.linear(inputs, *self._active())

    def export(self) -> nn.Linear:
        """Return a plain linear layer with a copy of the active part."""
        weight, bias = self._active()
        plain = nn.Linear(self.active_in, self.active_out, bias is not None, weight.device, weight.dtype)
        return _filled(plain, self.training, weight=weight, bias=bias)


class SlimmableConv2d(nn.Conv2d, SlimmableLayer):
    """A two-dimensional convolution whose first output and input channels can work alone.

    With groups the number of active groups follows the active input channels, so that a depthwise convolution stays
    one; the active output channels are then those of the active groups.

    Args:
        in_channels: Number of input channels when all are active.
        out_channels: Number of output channels when all are active.
        kernel_size: Height and width of the kernel.
        stride: Step of the kernel.
        padding: Zeros added on each side.
        dilation: Distance between the elements of the kernel.
        groups: Number of groups when all channels are active.
        bias: Whether a bias is added.

    Shape:
        - inputs: ``(B, active_in, H, W)``; returns ``(B, active_out, H', W')``.

    Raises:
        ValueError: By ``slim``, if a number is out of range or does not fit the groups.

    Example:
        >>> import torch
        >>> layer = SlimmableConv2d(8, 6, kernel_size=3, padding=1)
        >>> layer.slim(4, 3)
        >>> layer(torch.zeros(2, 4, 5, 5)).shape
        torch.Size([2, 3, 5, 5])

    References:
        Yu, Yang, Xu, Yang, Huang. *Slimmable Neural Networks*. ICLR 2019. https://arxiv.org/abs/1812.08928.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.active_in, self.active_out = in_channels, out_channels

    def slim(self, active_in: int, active_out: int) -> None:
        """Choose the number of input and output channels that take part."""
        self._check("active_in", active_in, self.in_channels)
        self._check("active_out", active_out, self.out_channels)
        whole = active_in * self.groups % self.in_channels == 0
        if self.groups > 1 and not (whole and active_out * self.in_channels == active_in * self.out_channels):
            raise ValueError(
                f"SlimmableConv2d: {active_in} -> {active_out} active channels must be whole groups of the "
                f"{self.groups} groups of {self.in_channels} -> {self.out_channels} channels; keep the ratio of both."
            )
        self.active_in, self.active_out = active_in, active_out

    @property
    def active_groups(self) -> int:
        """Number of groups that take part."""
        return self.groups * self.active_in // self.in_channels if self.groups > 1 else 1

    def _active(self) -> tuple[Tensor, Tensor | None]:
        bias: Tensor | None = self.bias
        weight = self.weight[: self.active_out, : self.active_in // self.active_groups]
        return weight, None if bias is None else bias[: self.active_out]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the active maps."""
        return F.conv2d(inputs, *self._active(), self.stride, self.padding, self.dilation, self.active_groups)

    def export(self) -> nn.Conv2d:
        """Return a plain convolution with a copy of the active part."""
        weight, bias = self._active()
        plain = nn.Conv2d(
            self.active_in,
            self.active_out,
            (self.kernel_size[0], self.kernel_size[1]),
            (self.stride[0], self.stride[1]),
            self.padding if isinstance(self.padding, str) else (self.padding[0], self.padding[1]),
            (self.dilation[0], self.dilation[1]),
            self.active_groups,
            bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        return _filled(plain, self.training, weight=weight, bias=bias)


class SlimmableBatchNorm2d(SlimmableLayer):
    """Batch normalisation with running statistics of its own for every number of active channels.

    Scale and shift are shared: the first channels are used. Statistics that were shared too would be wrong for every
    width at evaluation, as the channels of a narrow network are distributed otherwise.

    Args:
        num_features: Number of channels when all are active.
        active: The numbers of active channels that may be chosen, ``num_features`` among them or added.
        eps: Added to the variance.
        momentum: Part of a batch's statistics in the running ones.

    Shape:
        - inputs: ``(B, active, H, W)``; returns the same shape.

    Raises:
        ValueError: If a number of channels is out of range, or, by ``slim``, was not announced.

    Note:
        The statistics depend on the widths of all layers before this one, of which only this one's is told apart.
        Where stages have different widths, recalibrate before export:
        :meth:`~lightning_mtl.controllable.ControllableModule.recalibrate`.

    Example:
        >>> import torch
        >>> norm = SlimmableBatchNorm2d(8, active=[4])
        >>> norm.slim(4, 4)
        >>> norm(torch.randn(2, 4, 3, 3)).shape, list(norm.statistics)
        (torch.Size([2, 4, 3, 3]), ['4', '8'])

    References:
        Yu, Yang, Xu, Yang, Huang. *Slimmable Neural Networks*. ICLR 2019, Sec. 3.2. https://arxiv.org/abs/1812.08928.
    """

    def __init__(self, num_features: int, active: Sequence[int] = (), eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        for count in active:
            self._check("every number in active", count, num_features)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.statistics = nn.ModuleDict(
            {
                str(count): nn.BatchNorm2d(count, eps, momentum, affine=False)
                for count in sorted({*active, num_features})
            }
        )
        self.active_in = self.active_out = num_features

    def slim(self, active_in: int, active_out: int) -> None:
        """Choose the number of channels that take part; both numbers are the same."""
        if active_in != active_out or str(active_in) not in self.statistics:
            raise ValueError(
                f"SlimmableBatchNorm2d: the number of active channels must be one of {list(self.statistics)}, before "
                f"and after, got {active_in} -> {active_out}; name it in active."
            )
        self.active_in = self.active_out = active_in

    def active_statistics(self) -> nn.BatchNorm2d:
        """Return the statistics of the chosen width, a batch normalisation without scale and shift."""
        found = self.statistics[str(self.active_out)]
        return found if isinstance(found, nn.BatchNorm2d) else nn.BatchNorm2d(self.active_out)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalised maps."""
        normalised = self.statistics[str(self.active_out)](inputs)
        scale, shift = self.weight[: self.active_out], self.bias[: self.active_out]
        return torch.addcmul(shift[:, None, None], normalised, scale[:, None, None])

    def export(self) -> nn.BatchNorm2d:
        """Return a plain batch normalisation with a copy of the active part and its statistics."""
        own = self.active_statistics()
        plain = nn.BatchNorm2d(
            self.active_out, own.eps, own.momentum, device=self.weight.device, dtype=self.weight.dtype
        )
        plain.load_state_dict(own.state_dict(), strict=False)
        return _filled(plain, self.training, weight=self.weight[: self.active_out], bias=self.bias[: self.active_out])


def _filled(plain: _Plain, training: bool, **parameters: Tensor | None) -> _Plain:
    with torch.no_grad():
        for name, value in parameters.items():
            if value is not None:
                plain.get_parameter(name).copy_(value)
    return plain.train(training)


def exported(module: nn.Module) -> nn.Module:
    """Return a copy of a module in which every slimmable layer is replaced by a plain one of its active size.

    Args:
        module: Any module; it is left as it is.
    """
    if isinstance(module, SlimmableLayer):
        return module.export()
    twin = copy.deepcopy(module)
    for name, child in twin.named_children():
        setattr(twin, name, exported(child))
    return twin
