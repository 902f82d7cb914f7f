"""The memory of a stream, as a part of callbacks that replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_mtl.callbacks.continual.module_side import by_name, untouched_buffers
from lightning_mtl.callbacks.continual.stream import CurrentTask, StreamCallback, datamodule_ability
from lightning_mtl.data.continual.buffer import ReplayBuffer, ReservoirBuffer, count_samples, join, take

PredictFn = Callable[[Any, Any], Any]


class ReplayCallback(StreamCallback):
    """A callback with a memory of the batches that were trained.

    The first such callback of a Trainer writes the memory, the others share it unless they have a buffer of their own.
    A stored sample is its part of the batch; with several processes all hold the same samples, those of the joined
    batch.

    Args:
        buffer: The memory. None shares that of the first replay callback of the Trainer, or makes a
            :class:`~lightning_mtl.data.ReservoirBuffer` of 200 samples.
        write_every_epoch: Offer a sample to the memory in every epoch in which it comes up, instead of in the first
            epoch of its task only. None does so where it is not known where tasks begin.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.
    """

    needs_logits = False

    def __init__(
        self,
        buffer: ReplayBuffer | None = None,
        write_every_epoch: bool | None = None,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(current_task)
        self.buffer = buffer
        self.write_every_epoch = write_every_epoch
        self._memory: ReplayBuffer | None = buffer
        self._writes = True
        self._stores_logits = False
        self._known: dict[str, set[int]] = {}
        self._pending: tuple[Any, Tensor] | None = None

    @property
    def memory(self) -> ReplayBuffer:
        """The memory in use.

        Raises:
            RuntimeError: If there is none yet.
        """
        if self._memory is None:
            raise RuntimeError(f"{type(self).__name__}: there is no memory before a Trainer fits; pass buffer=.")
        return self._memory

    def predict(self, module: pl.LightningModule, batch: Any) -> Any:
        """Return the logits of a batch, a tensor or a mapping of tensors."""
        return module(_inputs(batch))

    # ------------------------------------------------------------------ set-up
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the memory that is shared, or make one."""
        if stage != "fit":
            return
        others = [c for c in trainer.callbacks if isinstance(c, ReplayCallback)]  # type: ignore[attr-defined]
        first = others[0]
        if self._memory is None:
            self._memory = ReservoirBuffer() if first is self else first.memory
        sharing = [c for c in others if (first.memory if c._memory is None else c._memory) is self._memory]
        self._writes = sharing[0] is self
        self._stores_logits = self._writes and any(c.needs_logits for c in sharing)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether the memory is smaller than the data."""
        samples = _training_samples(trainer)
        one_of_several = self.current_task is not None and datamodule_ability(trainer, "num_training_samples") is None
        if samples is not None and self.memory.capacity > samples and not one_of_several:
            raise MisconfigurationException(
                f"{type(self).__name__}: the buffer's capacity must be at most the {samples} training samples, got "
                f"{self.memory.capacity}; pass buffer=ReservoirBuffer(capacity={max(samples // 10, 1)}), or "
                "current_task= where this fit is one task of several."
            )

    # ------------------------------------------------------------------ writing
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide what is remembered of the batch, as it is before the step."""
        every = not self.knows_tasks(trainer) if self.write_every_epoch is None else self.write_every_epoch
        if not self._writes or not (every or self.first_epoch_of_task(trainer)):
            return
        count = count_samples(batch, type(self).__name__)
        known = _labels(batch) if self._stores_logits else {}
        counts, known = _exchange_counts(count, known)
        for name, labels in known.items():
            self._known.setdefault(name, set()).update(labels)
        task = self.task_of(trainer)
        slots = self.memory.place(sum(counts), [task] * sum(counts))
        own = slots[_positions(counts, process_rank())]
        items: Any = None
        if (slots >= 0).any():
            kept = (own >= 0).to(next(iter(pytree.tree_leaves(batch))).device)
            items = {"batch": take(batch, kept), "task": torch.full((int(kept.sum()),), task)}
            if self._stores_logits:
                items |= take(self._logits(trainer, pl_module, batch), kept)
            items, slots = _exchange_items(move_data_to_device(items, "cpu"), own[own >= 0])
            self._pending = items, slots

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember."""
        if self._pending is not None:
            self.memory.write(*self._pending)
            self._pending = None

    def _logits(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> dict[str, dict[str, Tensor]]:
        """Return the logits of a batch in training mode, and for every sample which classes have come up so far."""
        with isolate_rng(), torch.no_grad(), untouched_buffers(module), trainer.precision_plugin.forward_context():
            outputs = by_name(self.predict(module, batch))
        logits = {name: output.detach().float() for name, output in outputs.items()}
        known = {name: torch.ones_like(output, dtype=torch.bool) for name, output in logits.items()}
        for name, labels in self._known.items():
            if name in logits and logits[name].ndim == 2:
                known[name].zero_()
                known[name][:, [label for label in labels if label < logits[name].shape[1]]] = True
        return {"logits": logits, "known": known}

    def draw(self, count: int, device: torch.device) -> Any:
        """Return samples from the memory, the same on all processes.

        Returns:
            ``{"batch", "task"}``, and where logits are wanted ``"logits"`` and ``"known"``, the classes that had come
            up when the sample was stored.
        """
        return move_data_to_device(self.memory.sample(count), device)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return the memory, unless another callback owns it, and where the stream stands."""
        owned = self._writes and self._memory is not None
        return {
            **super().state_dict(),
            "buffer": self.memory.state_dict() if owned else None,
            "known": {name: sorted(labels) for name, labels in self._known.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state_dict)
        if state_dict["buffer"] is not None:
            if self._memory is None:
                self._memory = ReservoirBuffer(state_dict["buffer"]["capacity"])
            self._memory.load_state_dict(state_dict["buffer"])
        self._known = {name: set(labels) for name, labels in state_dict["known"].items()}


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) else batch


def _labels(batch: Any) -> dict[str, set[int]]:
    """Return the classes in a batch ``(inputs, labels)`` or ``(inputs, {name: labels})``."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        return {}
    targets = batch[1] if isinstance(batch[1], Mapping) else {"": batch[1]}
    return {
        name: {label for label in set(target.tolist()) if label >= 0}
        for name, target in targets.items()
        if isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
    }


def _training_samples(trainer: pl.Trainer) -> int | None:
    """Return the number of training samples, None where it is not known."""
    known = datamodule_ability(trainer, "num_training_samples")
    if known is not None:
        return int(known)
    loaders = pytree.tree_leaves(trainer.train_dataloader)
    try:
        return sum(len(loader.dataset) for loader in loaders)
    except (AttributeError, TypeError):  # an iterable without length
        return None


# ---------------------------------------------------------------------- several processes
def num_processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _exchange_counts(count: int, known: dict[str, set[int]]) -> tuple[list[int], dict[str, set[int]]]:
    """Return the number of samples on every process, and the labels of all of them."""
    if num_processes() == 1:
        return [count], known
    found: list[Any] = [None] * num_processes()
    dist.all_gather_object(found, (count, known))
    union: dict[str, set[int]] = {}
    for _, labels in found:
        for name, values in labels.items():
            union.setdefault(name, set()).update(values)
    return [number for number, _ in found], union


def _positions(counts: list[int], rank: int) -> Tensor:
    """Return the positions of a process's samples in the joined batch, in which the processes take turns.

    Example:
        >>> _positions([2, 2], 1), _positions([1, 3], 1)
        (tensor([1, 3]), tensor([1, 2, 3]))
    """
    order = sorted((i, r) for r, count in enumerate(counts) for i in range(count))
    return torch.tensor([position for position, (_, r) in enumerate(order) if r == rank], dtype=torch.int64)


def _exchange_items(items: Any, slots: Tensor) -> tuple[Any, Tensor]:
    """Return what all processes have to remember."""
    if num_processes() == 1:
        return items, slots
    found: list[Any] = [None] * num_processes()
    dist.all_gather_object(found, (items, slots) if len(slots) else None)
    parts = [part for part in found if part is not None]
    joined = parts[0][0]
    for more, _ in parts[1:]:
        joined = join(joined, more)
    return joined, torch.cat([own for _, own in parts])
