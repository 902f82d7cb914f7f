"""Changes of the input that turn one data set into several domains."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lightning_mtl.data.samplers import mix_seed


class DomainShift(ABC):
    """A change of the input that depends on the task."""

    @abstractmethod
    def __call__(self, inputs: Tensor, task: int, num_tasks: int) -> Tensor:
        """Return one sample as it looks in the domain of a task.

        Args:
            inputs: One image ``(C, H, W)``.
            task: Number of the task, from 0.
            num_tasks: Number of tasks.
        """


class PermutedPixels(DomainShift):
    """Every task sees the pixels in an order of its own; the first task sees them as they are.

    Args:
        seed: Seed of the orders.

    Example:
        >>> image = torch.arange(4.0).view(1, 2, 2)
        >>> shift = PermutedPixels()
        >>> bool(shift(image, 0, 2).equal(image)), sorted(shift(image, 1, 2).flatten().tolist())
        (True, [0.0, 1.0, 2.0, 3.0])

    References:
        Goodfellow, Mirza, Xiao, Courville, Bengio. *An Empirical Investigation of Catastrophic Forgetting in
        Gradient-Based Neural Networks*. ICLR 2014. https://arxiv.org/abs/1312.6211.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._orders: dict[tuple[int, int], Tensor] = {}

    def __call__(self, inputs: Tensor, task: int, num_tasks: int) -> Tensor:
        """Return the image with its pixels in the task's order, the same for all channels."""
        if task == 0:
            return inputs
        pixels = inputs.flatten(1)
        key = (task, pixels.shape[1])
        if key not in self._orders:
            stream = Generator().manual_seed(mix_seed(self.seed, task))
            self._orders[key] = torch.randperm(pixels.shape[1], generator=stream)
        return pixels[:, self._orders[key]].view_as(inputs)


class Rotation(DomainShift):
    """Every task sees the images turned by another angle, the angles being spread evenly from 0.

    Args:
        max_degrees: Angle that a task after the last one would have; 180 gives 0, 45, 90 and 135 degrees to four tasks.
        invert: Whether every other task sees the images in negative as well (1 minus the value).

    Example:
        >>> image = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> Rotation(max_degrees=180)(image, 1, 2).round().abs()
        tensor([[[0., 0.],
                 [1., 0.]]])

    References:
        Lopez-Paz, Ranzato. *Gradient Episodic Memory for Continual Learning*. NeurIPS 2017.
        https://arxiv.org/abs/1706.08840, Sec. 5.1.
    """

    def __init__(self, max_degrees: float = 180.0, invert: bool = False) -> None:
        self.max_degrees = max_degrees
        self.invert = invert

    def __call__(self, inputs: Tensor, task: int, num_tasks: int) -> Tensor:
        """Return the image turned counter-clockwise, zeros where nothing was."""
        if task:
            angle = torch.deg2rad(torch.tensor(self.max_degrees * task / num_tasks))
            cos, sin = angle.cos(), angle.sin()
            matrix = torch.stack([torch.stack([cos, -sin, 0 * cos]), torch.stack([sin, cos, 0 * cos])])
            grid = F.affine_grid(matrix.unsqueeze(0), [1, *inputs.shape], align_corners=False)
            inputs = F.grid_sample(inputs.unsqueeze(0), grid, align_corners=False)[0]
        return 1 - inputs if self.invert and task % 2 else inputs
