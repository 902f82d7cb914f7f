"""The accuracy on every task after every task."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_mtl.callbacks.continual.module_side import untouched_buffers
from lightning_mtl.callbacks.continual.stream import (
    CurrentTask,
    StreamCallback,
    datamodule_ability,
    publish_numbers,
)
from lightning_mtl.callbacks.figures import publish_figure
from lightning_mtl.functional.modes import modes_kept
from lightning_mtl.metrics.continual import average_accuracy, backward_transfer, forgetting, forward_transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORED = -100
CountFn = Callable[[Any, Any], tuple[int, int]]


class ContinualMetrics(StreamCallback):
    """Measure the accuracy on every task after every task, and what follows from it.

    The untrained network, and the network as it comes out of every task, is evaluated on the loaders of all tasks. The
    rows make the accuracy matrix, kept in ``matrix`` (``untrained`` holds the first evaluation), written to
    ``accuracy_matrix.csv`` in the run's folder, and drawn at the end as ``continual/accuracy_matrix``. Logged after
    every task: ``continual/average_accuracy``, ``continual/forgetting``, ``continual/backward_transfer``,
    ``continual/forward_transfer`` and ``continual/accuracy/<task>``. Weights, modes, buffers and random states stay as
    they are.

    Args:
        loaders: One evaluation loader for every task; None asks the data module for
            ``task_dataloaders(split)``.
        split: Which split to ask the data module for, ``"val"`` or ``"test"``.
        count_fn: Callable from module and batch to the number of correct and of all samples. None understands batches
            ``(inputs, labels)`` of modules that return logits, and ``(inputs, {name: labels})`` of modules that return
            a mapping of logits; -100 is no label.
        figure: Draw the matrix at the end.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.

    Raises:
        MisconfigurationException: If there are no loaders, it comes before a callback that changes the weights at the
            end, or the batches have another form.

    Note:
        With loaders of the data modules of this package the processes share the samples; other loaders are evaluated
        in full by each of them, unless their sampler is a ``DistributedSampler``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ContinualMetrics(split="test")], accelerator="cpu", logger=False)

    References:
        Lopez-Paz, Ranzato. *Gradient Episodic Memory for Continual Learning*. NeurIPS 2017.
        https://arxiv.org/abs/1706.08840, Sec. 2.
    """

    def __init__(
        self,
        loaders: Sequence[Any] | None = None,
        split: Literal["val", "test"] = "val",
        count_fn: CountFn | None = None,
        figure: bool = True,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(current_task)
        if split not in ("val", "test"):
            raise ValueError(f"ContinualMetrics: split must be 'val' or 'test', got {split!r}.")
        self.loaders = loaders
        self.split = split
        self.count_fn = count_fn
        self.figure = figure
        self.untrained: list[float] = []
        self.matrix: list[list[float]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look whether the loaders are there, and whether the weights are final when they are measured."""
        if stage != "fit":
            return
        if self.loaders is None and datamodule_ability(trainer, "task_dataloaders") is None:
            raise MisconfigurationException(
                "ContinualMetrics: loaders must be given, one for every task, since the data module has no "
                "task_dataloaders(); pass loaders=[...], or use TaskStream."
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        behind = callbacks[callbacks.index(self) :]
        late = [type(other).__name__ for other in behind if getattr(other, "tunes_at_end", False)]
        if late:
            raise MisconfigurationException(
                f"ContinualMetrics: it must come after {late[0]}, which changes the weights when training ends; put it "
                "behind it in Trainer(callbacks=[...])."
            )

    def on_task_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, task: int) -> None:
        """Evaluate the untrained network."""
        if not self.untrained:
            self.untrained = self._evaluate(trainer, pl_module)

    def on_task_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, task: int) -> None:
        """Evaluate the network as it came out of a task."""
        self._add(trainer, self._evaluate(trainer, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate after the last task, and draw the matrix."""
        super().on_train_end(trainer, pl_module)
        if self.figure and self.matrix and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            publish_figure(trainer, "continual/accuracy_matrix", draw_matrix(self.matrix))

    def _add(self, trainer: pl.Trainer, row: list[float]) -> None:
        self.matrix.append(row)
        publish_numbers(trainer, self.summary())
        folder = trainer.log_dir or trainer.default_root_dir  # log_dir is exchanged between the processes
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = Path(folder) / "accuracy_matrix.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["after", *(f"task{t}" for t in range(len(row)))])
                writer.writerow(["untrained", *self.untrained])
                writer.writerows([f"task{t}", *values] for t, values in enumerate(self.matrix))

    def summary(self) -> dict[str, float]:
        """Return the numbers that follow from the matrix so far, by the names under which they are logged."""
        if not self.matrix:
            return {}
        found = {
            "continual/average_accuracy": average_accuracy(self.matrix),
            **{f"continual/accuracy/{task}": value for task, value in enumerate(self.matrix[-1])},
        }
        if len(self.matrix) > 1:
            found |= {
                "continual/forgetting": forgetting(self.matrix),
                "continual/backward_transfer": backward_transfer(self.matrix),
                "continual/forward_transfer": forward_transfer(self.matrix, self.untrained),
            }
        return found

    # ------------------------------------------------------------------ evaluation
    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[float]:
        """Return the accuracy on every task."""
        loaders = self.loaders
        if loaders is None:
            loaders = datamodule_ability(trainer, "task_dataloaders")(self.split)
        counts = []
        with (
            modes_kept(module),
            isolate_rng(),
            torch.no_grad(),
            untouched_buffers(module),
            trainer.precision_plugin.forward_context(),
        ):
            module.eval()
            for loader in loaders:
                correct = total = 0
                for batch in loader:
                    converted = trainer.precision_plugin.convert_input(move_data_to_device(batch, module.device))
                    right, seen = (self.count_fn or count_correct)(module, converted)
                    correct, total = correct + right, total + seen
                counts.append((correct, total))
        table = torch.tensor(counts, dtype=torch.float64, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            table = trainer.strategy.reduce(table, reduce_op="sum")
        if (table[:, 1] == 0).any():
            raise MisconfigurationException("ContinualMetrics: the loader of a task gave no labelled sample.")
        return [float(value) for value in table[:, 0] / table[:, 1]]

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return the matrix so far."""
        return {**super().state_dict(), "untrained": self.untrained, "matrix": self.matrix}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state_dict)
        self.untrained = list(state_dict["untrained"])
        self.matrix = [list(row) for row in state_dict["matrix"]]


def count_correct(module: nn.Module, batch: Any) -> tuple[int, int]:
    """Return how many labels of a batch are predicted, and how many there are.

    Args:
        module: Returns logits ``(B, C)``, or a mapping of them.
        batch: ``(inputs, labels)`` or ``(inputs, {name: labels})``; -100 is no label.

    Raises:
        MisconfigurationException: If batch or outputs have another form.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, targets = batch
        outputs = module(inputs)
        if isinstance(targets, Tensor):
            targets = {"": targets}
        if isinstance(outputs, Tensor) and len(targets) == 1:
            outputs = dict.fromkeys(targets, outputs)
        if isinstance(outputs, Mapping) and all(_fits(outputs.get(name), labels) for name, labels in targets.items()):
            correct = total = 0
            for name, labels in targets.items():
                labelled = labels != IGNORED
                correct += int(((outputs[name].argmax(dim=1) == labels) & labelled).sum())
                total += int(labelled.sum())
            return correct, total
    raise MisconfigurationException(
        "ContinualMetrics: batches must be (inputs, labels) or (inputs, {name: labels}) with logits to match from the "
        "module's forward; pass count_fn= for anything else."
    )


def _fits(logits: Any, labels: Any) -> bool:
    return isinstance(logits, Tensor) and isinstance(labels, Tensor) and logits.ndim == 2 and labels.ndim == 1


def draw_matrix(matrix: Sequence[Sequence[float]]) -> Figure:
    """Return a picture of an accuracy matrix, a row for every task that was trained.

    Args:
        matrix: Row t: accuracy on the tasks after training on task t.
    """
    from matplotlib.figure import Figure

    width = max(len(row) for row in matrix)
    figure = Figure(figsize=(1.6 + 0.6 * width, 1.4 + 0.6 * len(matrix)), layout="constrained")
    axes = figure.add_subplot()
    table = [[*row, *[float("nan")] * (width - len(row))] for row in matrix]
    image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            axes.text(i, t, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set(
        xlabel="evaluated on task",
        ylabel="after task",
        xticks=range(width),
        yticks=range(len(matrix)),
        title=f"accuracy, average {average_accuracy(matrix):.3f}",
    )
    figure.colorbar(image, ax=axes)
    return figure
