"""Regression of polynomials of a hidden direction: the toy problem of grokking without weight decay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_mtl.data.base import Split
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.table import Table, TableDataModule

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}


class PolynomialRegressionDataModule(TableDataModule):
    r"""Gaussian inputs and powers of a hidden direction as targets, one direction a task.

    .. math:: x \sim N(0, I_D / D), \qquad y_k = \frac1{q_k} (\beta_k \cdot x)^{q_k}, \qquad \|\beta_k\|^2 = D

    The quadratic task is the teacher of Kumar et al. Inputs are ``(B, D)`` float32, targets ``(B, 1)`` float32, NaN
    without label. With tasks of different degree one network can be lazy for one task and rich for another.

    Args:
        degrees: Task -> degree :math:`q_k`; None gives one task, ``{"quadratic": 2}``.
        num_features: Number D of inputs.
        num_train: Number of training samples. Grokking needs an intermediate number: with D = 50 a student of 200
            units only memorizes 100 samples, groks with 250, and generalizes at once with 1000.
        num_val: Number of validation samples.
        num_test: Number of test samples, which are the prediction samples too.
        noise: Standard deviation of Gaussian noise added to the training targets.
        batch_size: Samples per batch and process; None takes the whole training set.
        num_workers: Processes that load data. The samples are in memory.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of directions, samples and order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> data = PolynomialRegressionDataModule(num_train=8, num_val=4)
        >>> data.setup("fit")
        >>> inputs, targets = next(iter(data.train_dataloader()))
        >>> inputs.shape, targets["quadratic"].shape
        (torch.Size([8, 50]), torch.Size([8, 1]))

    References:
        Kumar, Bordelon, Gershman, Pehlevan. *Grokking as the Transition from Lazy to Rich Training Dynamics*. ICLR
        2024. https://arxiv.org/abs/2310.06110
    """

    def __init__(
        self,
        degrees: dict[str, int] | None = None,
        num_features: int = 50,
        num_train: int = 250,
        num_val: int = 500,
        num_test: int = 500,
        noise: float = 0.0,
        *,
        batch_size: int | None = None,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        name = type(self).__name__
        self.degrees = {"quadratic": 2} if degrees is None else dict(degrees)
        sizes = {"num_features": num_features, **{f"degrees[{task!r}]": q for task, q in self.degrees.items()}}
        for argument, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}: {argument} must be at least 1, got {value}.")
        if not self.degrees:
            raise ValueError(f"{name}: degrees must name at least one task, got none.")
        if noise < 0:
            raise ValueError(f"{name}: noise must not be negative, got {noise}.")
        super().__init__(
            num_train,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        self.num_features = num_features
        self.noise = noise
        self.lengths: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test, "predict": num_test}

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.degrees, float("nan"))

    def directions(self) -> dict[str, Tensor]:
        """Return task -> its hidden direction ``(D,)``, float64."""
        stream = Generator().manual_seed(mix_seed(self.seed, len(_STREAMS)))
        drawn = [torch.randn(self.num_features, generator=stream, dtype=torch.float64) for _ in self.degrees]
        return {
            task: direction * (self.num_features**0.5 / direction.norm())
            for task, direction in zip(self.degrees, drawn, strict=True)
        }

    def make_dataset(self, split: Split) -> Table:
        """Return the samples of a split."""
        stream = Generator().manual_seed(mix_seed(self.seed, _STREAMS[split]))
        shape = (self.lengths[split], self.num_features)
        inputs = torch.randn(shape, generator=stream, dtype=torch.float64) / self.num_features**0.5
        targets = {}
        for task, direction in self.directions().items():
            degree = self.degrees[task]
            target = (inputs @ direction) ** degree / degree
            if split == "train" and self.noise:
                target = target + self.noise * torch.randn(len(target), generator=stream, dtype=torch.float64)
            targets[task] = target.unsqueeze(1).float()
        return Table(inputs.float(), targets)


@dataclass(frozen=True)
class QuadraticError:
    """Expected squared error on the quadratic task, in the three parts that it is a sum of.

    Args:
        trace: Error of the overall variance, from the trace of the error matrix.
        misalignment: Error of the direction, from the square of the error matrix.
        linear: Power left in the student's linear part.
    """

    trace: float
    misalignment: float
    linear: float

    @property
    def total(self) -> float:
        """Return the expected squared error."""
        return self.trace + self.misalignment + self.linear


def quadratic_error(
    weight: Tensor, initial_weight: Tensor, direction: Tensor, alpha: float, epsilon: float
) -> QuadraticError:
    r"""Return the exact test error of a quadratic student on the quadratic task, without test samples.

    The student is :math:`\frac\alpha N \sum_i [\phi(w_i \cdot x) - \phi(w_i^0 \cdot x)]` with
    :math:`\phi(h) = h + \frac\varepsilon2 h^2`, the teacher :math:`\frac12 (\beta \cdot x)^2` and
    :math:`x \sim N(0, I_D/D)`. With :math:`A = \beta\beta^T - \alpha\varepsilon (W^T W - W_0^T W_0)/N` and
    :math:`b = \alpha\, \overline{(w - w^0)}`,

    .. math:: E = \frac{(\mathrm{tr} A)^2}{4 D^2} + \frac{\mathrm{tr} A^2}{2 D^2} + \frac{\|b\|^2}{D} .

    Args:
        weight: The student's weights ``(N, D)``.
        initial_weight: Its weights at initialization ``(N, D)``.
        direction: The teacher's direction ``(D,)``.
        alpha: Output scale.
        epsilon: Coefficient of the activation.

    Example:
        >>> zero, beta = torch.zeros(3, 4), torch.tensor([2.0, 0.0, 0.0, 0.0])
        >>> quadratic_error(zero, zero, beta, alpha=1.0, epsilon=0.1).total  # the mean of y squared, 3/4
        0.75

    References:
        Kumar, Bordelon, Gershman, Pehlevan. *Grokking as the Transition from Lazy to Rich Training Dynamics*. ICLR
        2024. https://arxiv.org/abs/2310.06110
    """
    units, features = weight.shape
    second_moment = (weight.T @ weight - initial_weight.T @ initial_weight) / units
    error = torch.outer(direction, direction) - alpha * epsilon * second_moment
    linear = alpha * (weight - initial_weight).mean(0)
    return QuadraticError(
        trace=float(error.trace() ** 2 / (4 * features**2)),
        misalignment=float((error @ error).trace() / (2 * features**2)),
        linear=float(linear.square().sum() / features),
    )
