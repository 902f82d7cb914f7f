"""How much the tasks pull against each other, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_mtl.callbacks.figures import publish_figure
from lightning_mtl.functional.gradients import (
    conflict_share,
    gradient_rows,
    gramian,
    gramian_cosines,
    gramian_norms,
)
from lightning_mtl.functional.second_pass import RandomState, second_pass

TaskLosses = Callable[[Any, Any], Mapping[str, Tensor]]
SharedParameters = Callable[[Any], Iterable[nn.Parameter]]


class GradientConflict(Callback):
    r"""Log the cosines, norms and conflicts of the task gradients, and draw them at the end.

    With a gradient balancer the numbers come from the Gramian that it has computed anyway. Otherwise the task losses of
    the batch are evaluated once more in every ``every_n_steps``-th step, with the same dropout masks and untouched
    running statistics, and differentiated one by one, which costs one forward and K backward passes.

    Logged, for tasks a and b: ``gradients/cosine/<a>-<b>``, ``gradients/norm/<a>``, ``gradients/conflict_share`` (share
    of pairs with a negative cosine) and ``gradients/magnitude_similarity``, the mean over the pairs of

    .. math:: \Phi(g_a, g_b) = \frac{2 \lVert g_a \rVert \lVert g_b \rVert}{\lVert g_a \rVert^2 + \lVert g_b \rVert^2}

    The picture ``gradients/conflict`` has the mean cosines and the course of the conflicts.

    Args:
        every_n_steps: Steps of the optimizer between two looks; with several optimizers the steps of all of them.
        losses: Callable ``(module, batch) -> {task: loss}`` for modules without ``task_losses``.
        shared: Callable ``module -> parameters`` for modules without ``shared_parameters``.
        max_pairs: Cosines of single pairs are logged as long as there are no more pairs than this.

    Raises:
        MisconfigurationException: At the start of a fit, if the module has neither a gradient balancer nor
            ``task_losses`` and ``shared_parameters`` and the callables are not given, or there is one task only.

    Note:
        Under several processes the gradients are those of the mean over the processes.

    References:
        Yu et al. *Gradient Surgery for Multi-Task Learning*. NeurIPS 2020, Definitions 1 to 3.
        https://arxiv.org/abs/2001.06782
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        losses: TaskLosses | None = None,
        shared: SharedParameters | None = None,
        max_pairs: int = 28,
    ) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"GradientConflict: every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.losses = losses
        self.shared = shared
        self.max_pairs = max_pairs
        self.tasks: tuple[str, ...] = ()
        self.steps: list[int] = []
        self.shares: list[float] = []
        self.cosines: list[list[list[float]]] = []
        self._batch: tuple[Any, RandomState] | None = None
        self._next_look = every_n_steps

    # ------------------------------------------------------------------ hooks
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there is something to look at."""
        tasks = getattr(pl_module, "tasks", None)
        if isinstance(tasks, Mapping | nn.ModuleDict) and len(tasks) == 1 and self.losses is None:
            raise MisconfigurationException(
                f"GradientConflict: there must be at least two tasks to compare, {type(pl_module).__name__} has only "
                f"{list(tasks.keys())}; remove the callback, or pass losses= that return several."
            )
        if self._from_balancer(pl_module):
            return
        for argument, given, ability in (
            ("losses", self.losses, "task_losses"),
            ("shared", self.shared, "shared_parameters"),
        ):
            if given is None and not callable(getattr(pl_module, ability, None)):
                raise MisconfigurationException(
                    f"GradientConflict: {type(pl_module).__name__} has no {ability}(); pass {argument}= to the "
                    "callback, for example GradientConflict(losses=lambda module, batch: {...}, "
                    "shared=lambda module: module.encoder.parameters())."
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the step to look at first."""
        self._next_look = (trainer.global_step // self.every_n_steps + 1) * self.every_n_steps

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the random state of a step that will be looked at."""
        due = trainer.global_step + 1 >= self._next_look
        self._batch = (batch, RandomState.now()) if due and not self._from_balancer(pl_module) else None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the gradients of the step that is about to be made."""
        step = trainer.global_step + 1
        if step < self._next_look:
            return
        found = self._gramian(trainer, pl_module)
        if found is None:
            return
        self._next_look = (step // self.every_n_steps + 1) * self.every_n_steps
        tasks, gram = found
        cosines, norms = gramian_cosines(gram), gramian_norms(gram)
        pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
        values = {f"gradients/norm/{task}": norm for task, norm in zip(tasks, norms.unbind(), strict=True)}
        share = conflict_share(gram)
        if pairs:
            values["gradients/conflict_share"] = share
            values["gradients/magnitude_similarity"] = torch.stack(
                [2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2).clamp(min=1e-38) for i, j in pairs]
            ).mean()
            if len(pairs) <= self.max_pairs:
                values |= {f"gradients/cosine/{tasks[i]}-{tasks[j]}": cosines[i, j] for i, j in pairs}
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=trainer.global_step)
        if not self.tasks:
            self.tasks = tasks
        if tasks == self.tasks:  # the picture shows the steps in which all tasks took part
            self.steps.append(step)
            self.shares.append(float(share) if pairs else 0.0)
            self.cosines.append(cosines.tolist())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the picture."""
        if self.steps and len(self.tasks) > 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            publish_figure(trainer, "gradients/conflict", self.draw())

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        return {
            "tasks": list(self.tasks),
            "steps": list(self.steps),
            "shares": list(self.shares),
            "cosines": list(self.cosines),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what a resumed run had seen."""
        self.tasks = tuple(state_dict["tasks"])
        self.steps, self.shares = list(state_dict["steps"]), list(state_dict["shares"])
        self.cosines = list(state_dict["cosines"])

    # ------------------------------------------------------------------ parts
    @staticmethod
    def _from_balancer(pl_module: pl.LightningModule) -> bool:
        return hasattr(getattr(pl_module, "balancer", None), "last_gramian")

    def _gramian(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[tuple[str, ...], Tensor] | None:
        if self._from_balancer(pl_module):
            balancer = cast(Any, pl_module.balancer)
            return None if balancer.last_gramian is None else (tuple(balancer.last_tasks), balancer.last_gramian)
        if self._batch is None:
            return None
        batch, state = self._batch
        self._batch = None
        with torch.enable_grad(), second_pass(pl_module, state), trainer.precision_plugin.forward_context():
            given = self.losses(pl_module, batch) if self.losses else cast(Any, pl_module).task_losses(batch)
        shared = self.shared(pl_module) if self.shared else cast(Any, pl_module).shared_parameters()
        parameters = [parameter for parameter in shared if parameter.requires_grad]
        matrix = gradient_rows(list(given.values()), parameters)
        if trainer.world_size > 1:
            dist.all_reduce(matrix)
            matrix /= trainer.world_size
        return tuple(given), gramian(matrix)

    def draw(self) -> Any:
        """Return the figure: mean cosines on the left, conflicts over the steps on the right."""
        from matplotlib.figure import Figure

        mean = torch.tensor(self.cosines).mean(0).numpy()
        count = len(self.tasks)
        side = max(3.0, 0.45 * count + 1.8)
        figure = Figure(figsize=(side + 4.6, side), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(side, 4.6))
        image = left.imshow(mean, cmap="RdBu", vmin=-1, vmax=1)
        left.set_xticks(range(count), self.tasks, rotation=45, ha="right")
        left.set_yticks(range(count), self.tasks)
        left.set_title("mean cosine")
        if count <= 12:
            for i in range(count):
                for j in range(count):
                    dark = abs(float(mean[i, j])) > 0.6
                    left.text(j, i, f"{mean[i, j]:.2f}", ha="center", va="center", color="white" if dark else "black")
        figure.colorbar(image, ax=left, shrink=0.8)
        if count * (count - 1) // 2 <= 6:
            for i in range(count):
                for j in range(i + 1, count):
                    course = [cosines[i][j] for cosines in self.cosines]
                    right.plot(self.steps, course, linewidth=1, label=f"{self.tasks[i]} - {self.tasks[j]}")
            right.axhline(0, color="black", linewidth=0.8)
            right.set_title("cosine")
            right.legend(fontsize=8)
        else:
            right.plot(self.steps, self.shares)
            right.set_title("share of pairs in conflict")
            right.set_ylim(0, 1)
        right.set_xlabel("step")
        right.grid(alpha=0.3)
        return figure
