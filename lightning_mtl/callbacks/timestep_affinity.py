"""How well the gradients of different timesteps of a diffusion model go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_mtl.balancers.base import mean_over_ranks
from lightning_mtl.callbacks.figures import publish_figure
from lightning_mtl.callbacks.grokking.undisturbed import undisturbed
from lightning_mtl.functional.gradients import flat_tensors, gramian, gramian_cosines
from lightning_mtl.functional.interval_clustering import interval_clustering
from lightning_mtl.functional.kernels import output_gradients


class TimestepAffinity(Callback):
    r"""Measure the cosines between the gradients of a diffusion model's timesteps, and draw them at the end.

    Every ``every_n_steps`` steps, for every timestep of a grid, the mean loss over the same training samples is
    differentiated by the parameters. The affinity of two timesteps is the mean over these moments of

    .. math:: A_{ij} = \cos(\nabla_\theta L_{t_i}, \nabla_\theta L_{t_j})

    Logged: ``affinity/gap/<n>``, the mean cosine of timesteps that are n apart, at this moment. The picture
    ``affinity/timesteps`` has the matrix :attr:`affinity` and its means by gap. The samples are the first that are
    trained on. Weights and random states of the training are left as they are.

    Args:
        every_n_steps: Steps of the optimizer between two moments.
        spacing: Distance between two timesteps of the grid, which begins at 0.
        num_samples: Number of samples a process, in whole batches.
        num_timesteps: Number of timesteps of the model; None reads ``module.schedule.num_steps``.
        loss: Callable ``(module, batch, timestep) -> mean loss``, for modules without ``timestep_loss``.
        shared: Callable ``module -> parameters``, for modules without ``shared_parameters``.

    Raises:
        ValueError: If a number is not positive.
        MisconfigurationException: At the start of a fit, if the module lacks what is not given.

    Note:
        All gradients are kept at once: as many copies of the parameters as the grid has timesteps. Under several
        processes the gradients are those of the mean over the processes. The noise is drawn anew for every timestep,
        so that cosines are not raised by noise in common; where samples are few, they are shrunk towards zero instead:
        raise ``num_samples`` until they stop growing. A resumed run collects its samples anew.

    References:
        Go, Kim, Lee, Lee, Oh, Moon, Choi. *Addressing Negative Transfer in Diffusion Models*. NeurIPS 2023, Sec. 3.
        https://arxiv.org/abs/2306.00354
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        spacing: int = 50,
        num_samples: int = 1000,
        num_timesteps: int | None = None,
        loss: Callable[[Any, Any, int], Tensor] | None = None,
        shared: Callable[[Any], Iterable[nn.Parameter]] | None = None,
    ) -> None:
        super().__init__()
        numbers = {"every_n_steps": every_n_steps, "spacing": spacing, "num_samples": num_samples}
        for argument, value in numbers.items():
            if value < 1:
                raise ValueError(f"TimestepAffinity: {argument} must be at least 1, got {value}.")
        self.every_n_steps = every_n_steps
        self.spacing = spacing
        self.num_samples = num_samples
        self.num_timesteps = num_timesteps
        self.loss = loss
        self.shared = shared
        self.moments = 0
        """Number of measurements."""
        self._total = torch.zeros(0, 0)
        self._batches: list[tuple[int, Any]] = []
        self._looked_at = 0

    # ------------------------------------------------------------------ results
    @property
    def timesteps(self) -> list[int]:
        """The timesteps of the grid."""
        return list(range(0, self.num_timesteps or 0, self.spacing))

    @property
    def affinity(self) -> Tensor:
        """Mean cosines ``(n, n)`` of the timesteps of the grid.

        Raises:
            RuntimeError: If nothing was measured yet.
        """
        if not self.moments:
            raise RuntimeError(
                f"TimestepAffinity: nothing was measured yet; train for at least {self.every_n_steps} steps."
            )
        return self._total / self.moments

    def by_gap(self, affinity: Tensor | None = None) -> dict[int, float]:
        """Return the distance of two timesteps -> mean cosine of all pairs that far apart.

        Args:
            affinity: Cosines on the grid; None takes the mean over the moments.
        """
        matrix = self.affinity if affinity is None else affinity
        return {gap * self.spacing: float(matrix.diagonal(gap).mean()) for gap in range(1, len(matrix))}

    def clusters(self, k: int) -> list[tuple[int, int]]:
        """Return k intervals of timesteps with the largest affinity to their centres.

        A timestep of the grid stands for those from there to the next one.

        Args:
            k: Number of intervals, from 1 to the number of timesteps of the grid.
        """
        grid = [*self.timesteps, cast(int, self.num_timesteps)]
        return [(grid[first], grid[last + 1] - 1) for first, last in interval_clustering(affinity=self.affinity, k=k)]

    # ------------------------------------------------------------------ hooks
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there is something to measure."""
        name = type(pl_module).__name__
        if self.num_timesteps is None:
            found = getattr(getattr(pl_module, "schedule", None), "num_steps", None)
            if not isinstance(found, int):
                raise MisconfigurationException(
                    f"TimestepAffinity: {name} has no schedule.num_steps; pass num_timesteps=."
                )
            self.num_timesteps = found
        for argument, given, ability in (
            ("loss", self.loss, "timestep_loss"),
            ("shared", self.shared, "shared_parameters"),
        ):
            if given is None and not callable(getattr(pl_module, ability, None)):
                raise MisconfigurationException(
                    f"TimestepAffinity: {name} has no {ability}(); pass {argument}= to the callback."
                )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batches."""
        if sum(size for size, _ in self._batches) < self.num_samples:
            tensors = flat_tensors(batch)
            if not tensors:
                raise MisconfigurationException("TimestepAffinity: a batch holds no tensor, so it cannot be kept.")
            self._batches.append((len(tensors[0]), batch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure when it is time."""
        step = trainer.global_step
        if step == self._looked_at or step % self.every_n_steps:
            return
        self._looked_at = step
        with undisturbed(pl_module):
            cosines = self._measure(trainer, pl_module).cpu()
        self._total = cosines + (self._total if self.moments else 0)
        self.moments += 1
        values = {f"affinity/gap/{gap}": value for gap, value in self.by_gap(cosines).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the picture."""
        self._batches = []
        if self.moments and len(self.timesteps) > 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            publish_figure(trainer, "affinity/timesteps", self.draw())

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {"total": self._total, "moments": self.moments, "looked_at": self._looked_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what a resumed run had measured."""
        self._total, self.moments = state_dict["total"], state_dict["moments"]
        self._looked_at = state_dict["looked_at"]

    # ------------------------------------------------------------------ parts
    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Tensor:
        """Return the cosines on the grid."""
        module = cast(Any, pl_module)
        shared = self.shared(module) if self.shared else module.shared_parameters()
        parameters = [parameter for parameter in shared if parameter.requires_grad]
        samples = sum(size for size, _ in self._batches)
        rows = []
        for timestep in self.timesteps:
            row = torch.zeros((), device=pl_module.device)
            for size, batch in self._batches:
                loss = self.loss(module, batch, timestep) if self.loss else module.timestep_loss(batch, timestep)
                row = row + size / samples * output_gradients(loss, parameters, torch.ones(1, 1))[0]
            rows.append(row)
        return gramian_cosines(gramian(mean_over_ranks(torch.stack(rows))))

    def draw(self) -> Any:
        """Return the figure: the matrix on the left, means by gap on the right."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        self.draw_matrix(left)
        gaps = self.by_gap()
        right.plot(list(gaps), list(gaps.values()), marker="o", markersize=3)
        right.axhline(0, color="black", linewidth=0.8)
        right.set_xlabel("distance of two timesteps")
        right.set_ylabel("mean cosine")
        right.grid(alpha=0.3)
        return figure

    def draw_matrix(self, axes: Any) -> None:
        """Draw the matrix into matplotlib's axes."""
        end = len(self.timesteps) * self.spacing
        image = axes.imshow(
            self.affinity.numpy(), cmap="RdBu", vmin=-1, vmax=1, origin="lower", extent=(0, end, 0, end)
        )
        axes.set_xlabel("timestep")
        axes.set_ylabel("timestep")
        axes.set_title("gradient cosine")
        axes.figure.colorbar(image, ax=axes, shrink=0.8)
