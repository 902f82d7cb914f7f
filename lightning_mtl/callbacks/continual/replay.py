"""Experience replay: remember samples of a stream, and train on them again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_mtl.callbacks.continual.stream import CurrentTask, StreamCallback, datamodule_ability
from lightning_mtl.data.continual.buffer import ReplayBuffer, ReservoirBuffer, count_samples, join, take
from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.losses.distillation.logit_matching import LogitMatching

LossFn = Callable[[Any, Any], Tensor]
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
        own = slots[_positions(counts, _rank())]
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


class ExperienceReplay(ReplayCallback):
    """Add samples from a memory of the stream to every training batch (ER).

    The module's ``training_step`` is given the batch with the samples appended, so it works with any LightningModule,
    with automatic and manual optimization, whose batches are nests of tensors. While the memory is empty the batch
    stays as it is.

    Args:
        replay_size: Samples that are added to a batch, per process; None adds as many as the batch has.
        buffer: The memory; None shares that of the first replay callback, or makes a reservoir of 200 samples.
        write_every_epoch: Offer a sample to the memory in every epoch instead of in the first one of its task; None
            does so where it is not known where tasks begin.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.

    Raises:
        ValueError: If ``replay_size`` is not positive, or a batch is no nest of tensors.
        MisconfigurationException: If the buffer is larger than the data.

    Note:
        The loss is the mean over the joined batch, so that new and old samples count alike. Samples are remembered as
        they came out of the loader, augmentation included.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_mtl.data import ReservoirBuffer
        >>> replay = ExperienceReplay(buffer=ReservoirBuffer(capacity=500))
        >>> trainer = Trainer(callbacks=[replay], accelerator="cpu", logger=False)

    References:
        Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr, Ranzato. *On Tiny Episodic Memories in Continual
        Learning*. 2019. https://arxiv.org/abs/1902.10486.
    """

    def __init__(
        self,
        replay_size: int | None = None,
        buffer: ReplayBuffer | None = None,
        write_every_epoch: bool | None = None,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(buffer, write_every_epoch, current_task)
        if replay_size is not None and replay_size < 1:
            raise ValueError(f"ExperienceReplay: replay_size must be at least 1, got {replay_size}.")
        self.replay_size = replay_size
        self.samples_replayed = 0
        self._restore: Callable[[], None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the memory; one callback may change the batches."""
        super().setup(trainer, pl_module, stage)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        names = [type(c).__name__ for c in callbacks if isinstance(c, ExperienceReplay)]
        if len(names) > 1:
            raise MisconfigurationException(f"ExperienceReplay: a Trainer takes one of {', '.join(names)}; keep one.")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the module's step see the joined batch."""
        super().on_train_start(trainer, pl_module)
        self._restore = wrap_training_step(pl_module, functools.partial(self._step, trainer, pl_module))

    def _step(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: Callable[..., Any], batch: Any, *rest: Any
    ) -> Any:
        if len(self.memory):
            count = self.replay_size or count_samples(batch, type(self).__name__)
            batch = join(batch, self.draw_share(count, module.device)["batch"])
        return step(batch, *rest)

    def draw_share(self, count: int, device: torch.device) -> Any:
        """Return samples for this process; the processes share out one draw."""
        world = _world()
        drawn = self.memory.sample(count * world)
        own = range(_rank(), count_samples(drawn, type(self).__name__), world)
        own = own or range(1)  # fewer samples than processes
        self.samples_replayed += len(own)
        return move_data_to_device(take(drawn, list(own)), device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the module its own step back."""
        super().on_train_end(trainer, pl_module)
        self._unwrap()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the module its own step back."""
        self._unwrap()

    def _unwrap(self) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None

    def state_dict(self) -> dict[str, Any]:
        """Return the memory and what was replayed."""
        return {**super().state_dict(), "samples_replayed": self.samples_replayed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state_dict)
        self.samples_replayed = state_dict["samples_replayed"]


class DarkExperienceReplay(ExperienceReplay):
    r"""Replay samples with the logits that the network once gave them, and with their labels (DER++).

    .. math:: L = L_{\mathrm{batch}} + \alpha\, \mathrm{match}(h(x'), z') + \beta\, L(x'', y'')

    with two independent draws from the memory, the logits :math:`z'` stored when :math:`x'` was seen, and the module's
    own loss :math:`L`. With :math:`\beta = 0` it is DER.

    Args:
        alpha: Weight of the stored logits, not negative. The paper tunes it in 0.1 to 1.
        beta: Weight of the labels, not negative. The paper tunes it in 0.5 to 1.
        replay_size: Samples in each of the two draws, per process; None takes as many as the batch has.
        buffer: The memory; None shares that of the first replay callback, or makes a reservoir of 200 samples.
        loss_fn: Callable from module and batch to the loss on remembered samples; None asks the module, see
            :func:`replay_loss`.
        predict_fn: Callable from module and batch to the logits, a tensor or a mapping of tensors; None calls the
            module with the inputs.
        match: Loss between logits and stored logits; None takes
            :class:`~lightning_mtl.losses.LogitMatching`, the paper's.
        write_every_epoch: Offer a sample to the memory in every epoch instead of in the first one of its task; None
            does so where it is not known where tasks begin.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.

    Raises:
        ValueError: If a weight is negative or a batch is no nest of tensors.
        MisconfigurationException: If the module optimizes manually, or the buffer is larger than the data.

    Note:
        The logits come from a second forward pass of batches of which something is remembered, in training mode and
        before the step; running statistics are left alone. All classes are matched, those that had not come up yet
        when the sample was stored included, as in the authors' code.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DarkExperienceReplay(alpha=0.3)], accelerator="cpu", logger=False)

    References:
        Buzzega, Boschini, Porrello, Abati, Calderara. *Dark Experience for General Continual Learning: a Strong,
        Simple Baseline*. NeurIPS 2020. https://arxiv.org/abs/2004.07211, Eq. 6. Authors' code:
        https://github.com/aimagelab/mammoth, MIT.
    """

    needs_logits = True

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        replay_size: int | None = None,
        buffer: ReplayBuffer | None = None,
        loss_fn: LossFn | None = None,
        predict_fn: PredictFn | None = None,
        match: LabelledLoss | None = None,
        write_every_epoch: bool | None = None,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(replay_size, buffer, write_every_epoch, current_task)
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if weight < 0:
                raise ValueError(f"DarkExperienceReplay: {name} must not be negative, got {weight}.")
        self.alpha = alpha
        self.beta = beta
        self.loss_fn = loss_fn
        self.predict_fn = predict_fn
        self.match = LogitMatching() if match is None else match

    def predict(self, module: pl.LightningModule, batch: Any) -> Any:
        """Return the logits of a batch."""
        return super().predict(module, batch) if self.predict_fn is None else self.predict_fn(module, batch)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look whether the module leaves its loss to the Trainer."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"DarkExperienceReplay: {type(pl_module).__name__} optimizes manually, so nothing can be added to its "
                "loss; use ExperienceReplay, or automatic optimization."
            )

    def _step(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: Callable[..., Any], batch: Any, *rest: Any
    ) -> Any:
        outputs = step(batch, *rest)
        if not len(self.memory) or outputs is None:
            return outputs
        count = self.replay_size or count_samples(batch, type(self).__name__)
        extra: Tensor | float = 0.0
        if self.alpha:
            drawn = self.draw_share(count, module.device)
            extra = extra + self.alpha * matching_loss(
                self.match, by_name(self.predict(module, drawn["batch"])), drawn["logits"]
            )
        if self.beta:
            drawn = self.draw_share(count, module.device)
            extra = extra + self.beta * replay_loss(module, drawn["batch"], self.loss_fn)
        if isinstance(outputs, Mapping):
            return {**outputs, "loss": outputs["loss"] + extra}
        return outputs + extra


# ---------------------------------------------------------------------- the module's side
def replay_loss(module: pl.LightningModule, batch: Any, loss_fn: LossFn | None = None) -> Tensor:
    """Return the loss of a module on remembered samples, without logging.

    It is the first of these that there is: ``loss_fn(module, batch)``, ``module.replay_loss(batch)``, the sum of
    ``module.task_losses(batch)``, and ``module.training_step(batch, 0)`` of a module with automatic optimization. A
    balancer takes no part in the first three, so it does not count these steps.

    Args:
        module: The LightningModule.
        batch: Samples as they came from the loader.
        loss_fn: Callable from module and batch to a scalar.

    Raises:
        MisconfigurationException: If there is none of them, or no loss comes out.
    """
    with silent(module):
        if loss_fn is not None:
            return loss_fn(module, batch)
        own = getattr(module, "replay_loss", None)
        if callable(own):
            return cast(Tensor, own(batch))
        losses = getattr(module, "task_losses", None)
        if callable(losses):
            return cast(Tensor, sum(losses(batch).values()))
        if not module.automatic_optimization:
            raise MisconfigurationException(
                f"replay: {type(module).__name__} optimizes manually, so its training_step gives no loss for "
                "remembered samples; pass loss_fn=, or give the module a method replay_loss(batch)."
            )
        step = getattr(module.training_step, "unwrapped", module.training_step)
        takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        outputs = step(batch, 0) if takes_index else step(batch)
    loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor):
        raise MisconfigurationException(
            f"replay: training_step of {type(module).__name__} must return a loss, got {type(loss).__name__}; pass "
            "loss_fn=, or give the module a method replay_loss(batch)."
        )
    return loss


def matching_loss(match: nn.Module, outputs: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over outputs of the loss between logits and stored logits."""
    return cast(Tensor, sum(match(outputs[name], logits) for name, logits in stored.items()))


@contextmanager
def silent(module: pl.LightningModule) -> Iterator[None]:
    """Let ``log`` and ``log_dict`` of a module do nothing."""
    names = [name for name in ("log", "log_dict") if name not in module.__dict__]
    for name in names:
        module.__dict__[name] = _nothing
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Take what ``log`` takes, and do nothing."""


@contextmanager
def untouched_buffers(module: nn.Module) -> Iterator[None]:
    """Put the buffers of a module, such as running statistics, back to what they were."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def wrap_training_step(module: pl.LightningModule, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Have ``wrapper(step, batch, ...)`` called for every training step; return a function that undoes it."""
    step = module.training_step
    own = module.__dict__.get("training_step")

    @functools.wraps(step)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(step, *args, **kwargs)

    wrapped.unwrapped = getattr(step, "unwrapped", step)  # type: ignore[attr-defined]
    module.__dict__["training_step"] = wrapped

    def restore() -> None:
        if own is None:
            module.__dict__.pop("training_step", None)
        else:
            module.__dict__["training_step"] = own

    return restore


def by_name(outputs: Any) -> dict[str, Tensor]:
    """Return logits as a mapping; a single tensor has the name ``""``."""
    if isinstance(outputs, Tensor):
        return {"": outputs}
    if isinstance(outputs, Mapping) and all(isinstance(value, Tensor) for value in outputs.values()):
        return dict(outputs)
    raise MisconfigurationException(
        f"replay: logits must be a tensor or a mapping of tensors, got {type(outputs).__name__}; pass predict_fn=."
    )


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
def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _exchange_counts(count: int, known: dict[str, set[int]]) -> tuple[list[int], dict[str, set[int]]]:
    """Return the number of samples on every process, and the labels of all of them."""
    if _world() == 1:
        return [count], known
    found: list[Any] = [None] * _world()
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
    if _world() == 1:
        return items, slots
    found: list[Any] = [None] * _world()
    dist.all_gather_object(found, (items, slots) if len(slots) else None)
    parts = [part for part in found if part is not None]
    joined = parts[0][0]
    for more, _ in parts[1:]:
        joined = join(joined, more)
    return joined, torch.cat([own for _, own in parts])
