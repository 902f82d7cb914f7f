"""Memories of a stream of samples, bounded in size."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree


class ReplayBuffer(ABC):
    """A bounded memory of samples, any nest of tensors whose first dimension counts the samples.

    Which samples are kept is decided by :meth:`place`, from their number alone, so that several processes that hold
    the same buffer decide alike and need to exchange only what is kept; :meth:`add` decides and stores in one call. The
    buffer draws from a generator of its own. Its state dict holds the samples, counters and the generator: a resumed
    run goes on with the very same memory.

    Args:
        capacity: Largest number of samples, positive.
        seed: Seed of what is kept and what is drawn.
        folder: Folder for the samples, kept there as memory-mapped files instead of in memory. It is made if absent;
            files of an earlier buffer in it are overwritten. One folder per buffer and process.

    Raises:
        ValueError: If the capacity is not positive.

    Note:
        On disk the samples do not occupy memory, but a checkpoint still holds a copy of them: files that later steps
        overwrite could not bring back the memory of an earlier checkpoint.
    """

    def __init__(self, capacity: int = 200, seed: int = 0, folder: str | os.PathLike[str] | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"{type(self).__name__}: capacity must be at least 1, got {capacity}.")
        self.capacity = capacity
        self.seed = seed
        self.folder = None if folder is None else Path(folder)
        self.seen = 0
        self._generator = Generator().manual_seed(seed)
        self._leaves: list[Tensor] = []
        self._structure: pytree.TreeSpec | None = None
        self._filled = torch.zeros(capacity, dtype=torch.bool)

    def __len__(self) -> int:
        """Return the number of samples stored."""
        return int(self._filled.sum())

    # ------------------------------------------------------------------ writing
    def add(self, items: Any, groups: Sequence[int] | Tensor | None = None) -> Tensor:
        """Offer samples to the memory.

        Args:
            items: A nest of tensors with the samples in their first dimension.
            groups: The group of every sample, for memories that are shared out between groups.

        Returns:
            For every sample the slot that it was written to, -1 where it was not kept.

        Raises:
            ValueError: If the tensors differ in length, structure or shape from each other or from those stored.
        """
        count = count_samples(items, type(self).__name__)
        slots = self.place(count, groups)
        kept = slots >= 0
        self.write(take(items, kept), slots[kept])
        return slots

    def place(self, count: int, groups: Sequence[int] | Tensor | None = None) -> Tensor:
        """Decide which of the next samples of the stream are kept, and where.

        Args:
            count: Number of samples.
            groups: The group of every sample.

        Returns:
            Slot of every sample, -1 where it is not kept; no slot occurs twice.
        """
        slots = self._place(count, groups)
        self.seen += count
        last: dict[int, int] = {}
        for position, slot in enumerate(slots.tolist()):
            if slot >= 0 and slot in last:
                slots[last[slot]] = -1  # overwritten within the batch
            last[slot] = position
        return slots

    @abstractmethod
    def _place(self, count: int, groups: Sequence[int] | Tensor | None) -> Tensor:
        """Return the slot of every sample; of several in one slot the last stays."""

    def write(self, items: Any, slots: Tensor) -> None:
        """Store samples in the slots that :meth:`place` gave them.

        Args:
            items: A nest of tensors, one sample per slot.
            slots: ``(n,)`` slots.

        Raises:
            ValueError: If structure or shape differ from what is stored.
        """
        if not len(slots):
            return
        name = type(self).__name__
        if count_samples(items, name) != len(slots):
            raise ValueError(f"{name}: items must be {len(slots)} samples, got {count_samples(items, name)}.")
        leaves, structure = pytree.tree_flatten(items)
        if self._structure is None:
            self._allocate([(tuple(leaf.shape[1:]), leaf.dtype) for leaf in leaves], structure)
        stored = [(tuple(leaf.shape[1:]), leaf.dtype) for leaf in self._leaves]
        given = [(tuple(leaf.shape[1:]), leaf.dtype) for leaf in leaves]
        if structure != self._structure or stored != given:
            raise ValueError(
                f"{name}: samples must all have the structure and shapes {stored}, got {given}; bring them to one size "
                "and one set of targets, or use another buffer."
            )
        for leaf, values in zip(self._leaves, leaves, strict=True):
            leaf[slots] = values.detach().to("cpu")
        self._filled[slots] = True

    def _allocate(self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]], structure: pytree.TreeSpec) -> None:
        self._structure = structure
        self._leaves = []
        for number, (shape, dtype) in enumerate(kinds):
            size = (self.capacity, *shape)
            if self.folder is None:
                self._leaves.append(torch.zeros(size, dtype=dtype))
                continue
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{number}.bin"
            path.unlink(missing_ok=True)
            length = max(torch.Size(size).numel(), 1)
            leaf = torch.from_file(str(path), shared=True, size=length, dtype=dtype)
            self._leaves.append(leaf[: torch.Size(size).numel()].view(size))

    # ------------------------------------------------------------------ reading
    def sample(self, count: int) -> Any:
        """Draw samples without replacement.

        Args:
            count: How many; fewer are drawn where fewer are stored.

        Returns:
            The samples in the structure in which they were added, on the CPU.

        Raises:
            ValueError: If the buffer is empty.
        """
        slots = self._filled_slots()
        order = torch.randperm(len(slots), generator=self._generator)[:count]
        return self._read(slots[order])

    def items(self) -> Any:
        """Return all samples, in the order of their slots.

        Raises:
            ValueError: If the buffer is empty.
        """
        return self._read(self._filled_slots())

    def _filled_slots(self) -> Tensor:
        slots = self._filled.nonzero()[:, 0]
        if not len(slots):
            raise ValueError(f"{type(self).__name__}: the buffer is empty; add samples before drawing from it.")
        return slots

    def _read(self, slots: Tensor) -> Any:
        assert self._structure is not None  # there are filled slots
        return pytree.tree_unflatten([leaf[slots] for leaf in self._leaves], self._structure)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return samples, counters and random state."""
        slots = self._filled.nonzero()[:, 0]
        return {
            "capacity": self.capacity,
            "seen": self.seen,
            "generator": self._generator.get_state(),
            "slots": slots,
            "leaves": [leaf[slots] for leaf in self._leaves],
            "kinds": [(list(leaf.shape[1:]), str(leaf.dtype).removeprefix("torch.")) for leaf in self._leaves],
            "structure": None if self._structure is None else pytree.treespec_dumps(self._structure),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back a state.

        Raises:
            ValueError: If it is that of a buffer of another capacity.
        """
        if state_dict["capacity"] != self.capacity:
            raise ValueError(
                f"{type(self).__name__}: capacity must be that of the checkpoint, {state_dict['capacity']}, got "
                f"{self.capacity}; resume with the same buffer."
            )
        self.seen = state_dict["seen"]
        self._generator.set_state(state_dict["generator"].cpu())
        self._filled = torch.zeros(self.capacity, dtype=torch.bool)
        self._leaves, self._structure = [], None
        if state_dict["structure"] is not None:
            kinds = [(tuple(shape), getattr(torch, dtype)) for shape, dtype in state_dict["kinds"]]
            self._allocate(kinds, pytree.treespec_loads(state_dict["structure"]))
            slots = state_dict["slots"].cpu()
            for leaf, values in zip(self._leaves, state_dict["leaves"], strict=True):
                leaf[slots] = values.cpu()
            self._filled[slots] = True


class ReservoirBuffer(ReplayBuffer):
    r"""Keep a uniform random sample of the stream, whatever its length (Vitter, 1985).

    Sample number :math:`i` (from 0) fills slot :math:`i` while there is room; afterwards :math:`j` is drawn uniformly
    from :math:`0 \dots i`, and the sample replaces slot :math:`j` if there is one. Every sample of the stream is then
    in the memory with the same probability.

    Args:
        capacity: Largest number of samples, positive.
        seed: Seed of what is kept and what is drawn.
        folder: Folder for memory-mapped files; None keeps the samples in memory.

    Raises:
        ValueError: If the capacity is not positive.

    Example:
        >>> buffer = ReservoirBuffer(capacity=3)
        >>> buffer.add({"x": torch.arange(2.0), "y": torch.tensor([0, 1])})
        tensor([0, 1])
        >>> len(buffer), sorted(buffer.sample(5)["y"].tolist())
        (2, [0, 1])

    References:
        Vitter. *Random Sampling with a Reservoir*. ACM Transactions on Mathematical Software 11, 1985.
        https://doi.org/10.1145/3147.3165, Algorithm R.
    """

    def _place(self, count: int, groups: Sequence[int] | Tensor | None) -> Tensor:
        order = torch.arange(self.seen, self.seen + count)
        drawn = (torch.rand(count, dtype=torch.float64, generator=self._generator) * (order + 1)).long()
        slots = torch.where(order < self.capacity, order, drawn)
        return torch.where(slots < self.capacity, slots, -1)


class RingBuffer(ReplayBuffer):
    """Keep the last samples of every group, the oldest being overwritten first.

    Each of ``num_groups`` groups, which are tasks or classes, owns ``capacity // num_groups`` slots. With one group it
    is a plain first-in first-out memory, which in a stream of tasks forgets them as the network does.

    Args:
        capacity: Largest number of samples, positive.
        num_groups: Number of groups that share it.
        seed: Seed of what is drawn.
        folder: Folder for memory-mapped files; None keeps the samples in memory.

    Raises:
        ValueError: If a number is not positive or there are more groups than slots.

    Example:
        >>> buffer = RingBuffer(capacity=4, num_groups=2)
        >>> buffer.add(torch.arange(3.0), groups=[0, 0, 0])
        tensor([-1,  1,  0])
        >>> buffer.add(torch.arange(3.0, 4.0), groups=[1])
        tensor([2])

    References:
        Lopez-Paz, Ranzato. *Gradient Episodic Memory for Continual Learning*. NeurIPS 2017.
        https://arxiv.org/abs/1706.08840, Sec. 3. Chaudhry et al. *On Tiny Episodic Memories in Continual Learning*.
        2019. https://arxiv.org/abs/1902.10486, Sec. 4.
    """

    def __init__(
        self,
        capacity: int = 200,
        num_groups: int = 1,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(capacity, seed, folder)
        if not 1 <= num_groups <= capacity:
            raise ValueError(f"RingBuffer: num_groups must be 1 to the capacity {capacity}, got {num_groups}.")
        self.num_groups = num_groups
        self._written = [0] * num_groups

    def _place(self, count: int, groups: Sequence[int] | Tensor | None) -> Tensor:
        if groups is None and self.num_groups > 1:
            raise ValueError(f"RingBuffer: groups must give one of {self.num_groups} groups per sample, got None.")
        members = [0] * count if groups is None or self.num_groups == 1 else [int(group) for group in groups]
        if len(members) != count or not all(0 <= group < self.num_groups for group in members):
            raise ValueError(
                f"RingBuffer: groups must be {count} numbers in 0..{self.num_groups - 1}, got {members}; set "
                "num_groups to the number of tasks."
            )
        room = self.capacity // self.num_groups
        slots = []
        for group in members:
            slots.append(group * room + self._written[group] % room)
            self._written[group] += 1
        return torch.tensor(slots, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """Return samples, counters and random state."""
        return {**super().state_dict(), "written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back a state.

        Raises:
            ValueError: If it is that of another buffer.
        """
        if len(state_dict.get("written", [])) != self.num_groups:
            raise ValueError(
                f"RingBuffer: num_groups must be that of the checkpoint, {len(state_dict.get('written', []))}, got "
                f"{self.num_groups}; resume with the same buffer."
            )
        super().load_state_dict(state_dict)
        self._written = list(state_dict["written"])


def count_samples(items: Any, owner: str) -> int:
    """Return the common length of all tensors in a nest.

    Raises:
        ValueError: If there is none, or something in the nest is no tensor or has no such length.
    """
    leaves = pytree.tree_leaves(items)
    wrong = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor) or leaf.ndim == 0]
    lengths = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim}
    if wrong or len(lengths) != 1:
        raise ValueError(
            f"{owner}: samples must be tensors with the same first dimension, got lengths {sorted(lengths)}"
            f"{f' and {wrong}' if wrong else ''}; collate the batch into tensors, or leave such entries out of it."
        )
    return int(lengths.pop())


def take(items: Any, index: Any) -> Any:
    """Return some of the samples of a nest of tensors."""
    return pytree.tree_map(lambda leaf: leaf[index], items)


def join(first: Any, second: Any) -> Any:
    """Return the samples of two nests of tensors of the same structure, one after the other."""
    return pytree.tree_map(lambda a, b: torch.cat([a, b.to(a.device, a.dtype)]), first, second)
