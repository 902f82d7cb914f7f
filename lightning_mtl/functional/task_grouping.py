"""Which tasks should be trained together, from how much they help each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Affinity = Tensor | Sequence[Sequence[float]]

_GAIN = 1e-12  # a score must be higher by this much, relative to the affinities, to count as better
_RESTARTS = 32


@dataclass(frozen=True)
class TaskGrouping:
    """Groups of tasks to train one network each, and which tasks each network is there for.

    Args:
        groups: Tasks that are trained together, by number in ascending order; groups may overlap.
        serves: For each group the tasks whose predictions are taken from it; every task is served by one group.
        score: Sum over the tasks of the affinity onto the task in the group that serves it.
    """

    groups: tuple[tuple[int, ...], ...]
    serves: tuple[tuple[int, ...], ...]
    score: float


def affinities_onto(
    affinity: Affinity, group: Sequence[int], self_affinity: Sequence[float] | None = None
) -> dict[int, float]:
    """Return for each task of a group the mean affinity of the others onto it.

    Args:
        affinity: Entry (i, j) is the affinity of task i onto task j.
        group: Numbers of the tasks.
        self_affinity: Affinity onto a task that is alone; minus infinity for all if None.

    Example:
        >>> affinities_onto([[0.0, 0.5, 0.25], [0.25, 0.0, 0.75], [0.5, 0.25, 0.0]], [0, 1, 2])
        {0: 0.375, 1: 0.375, 2: 0.5}
    """
    rows = _checked(affinity)
    if len(group) == 1:
        (alone,) = group
        return {alone: -torch.inf if self_affinity is None else float(self_affinity[alone])}
    return {j: sum(rows[i][j] for i in group if i != j) / (len(group) - 1) for j in group}


def select_task_groups(
    affinity: Affinity, budget: int, self_affinity: Sequence[float] | float | None = None
) -> TaskGrouping:
    r"""Choose at most ``budget`` groups of tasks that maximize the affinity onto every task, exactly.

    The affinity onto task j in a group is the mean of those of the group's other tasks, and each task is served by the
    group where it is highest:

    .. math:: \max_{|\mathcal G| \le b} \sum_j \max_{G \in \mathcal G,\, j \in G} \frac{1}{|G| - 1}
              \sum_{i \in G \setminus j} Z_{i \to j}

    Groups may overlap: a task can take part in a network for the sake of the others. The search is a branch and bound
    over the ways to divide the tasks by the network that serves them. The best network for tasks S is found directly:
    for every size, S with the helpers of largest total affinity onto S. No task can gain more than its largest
    affinity, which bounds what the tasks that are not yet assigned can add. The effort grows exponentially at worst;
    16 tasks take seconds. For many more use :func:`spectral_task_groups`.

    Args:
        affinity: Entry (i, j) is the affinity of task i onto task j. The diagonal is not used.
        budget: Largest number of networks, from 1 to K.
        self_affinity: What a network for one task alone counts: a number, or one for each task. The paper's equation
            says nothing about it. None, as in the authors' code, never trains a task alone; 0 does so where all others
            would do harm; the diagonal of a lookahead affinity compares with a step on the task itself.

    Shape:
        - affinity: ``(K, K)``; self_affinity: ``(K,)``.

    Raises:
        ValueError: If there are fewer than two tasks, an affinity is not finite, a shape is wrong, or ``budget`` is not
            between 1 and K.

    Note:
        More than K networks cannot help, since every task is served by one. The authors' code enumerates all sets of
        groups and takes the mean over tasks instead of the sum. Among equal scores the one found first is kept.

    Example:
        >>> affinity = [[0.0, 1.0, 0.125], [0.5, 0.0, 0.25], [0.125, 0.25, 0.0]]
        >>> select_task_groups(affinity, budget=2)
        TaskGrouping(groups=((0, 1), (1, 2)), serves=((0, 1), (2,)), score=1.75)

    References:
        Fifty, Amid, Zhao, Yu, Anil, Finn. *Efficiently Identifying Task Groupings for Multi-Task Learning*. NeurIPS
        2021, Sec. 3.3. https://arxiv.org/abs/2109.04617. Authors' code:
        https://github.com/google-research/google-research/tree/master/tag, Apache-2.0.
    """
    rows = _checked(affinity)
    _check_budget("select_task_groups", "budget", budget, len(rows))
    search = _Search(rows, budget, _self_affinities(self_affinity, len(rows)))
    blocks = search.run()
    found: dict[int, int] = {}  # group -> tasks that it serves; two sets of tasks may have one best group
    for block in blocks:
        group = search.best_group(block)[1]
        found[group] = found.get(group, 0) | block
    ordered = sorted((_members(group), _members(served)) for group, served in found.items())
    score = sum(search.best_group(block)[0] for block in blocks)
    return TaskGrouping(tuple(group for group, _ in ordered), tuple(served for _, served in ordered), score)


class _Search:
    """Branch and bound over the divisions of the tasks into sets that one network serves; sets are bit masks."""

    def __init__(self, rows: list[list[float]], budget: int, alone: list[float]) -> None:
        self.rows = rows
        self.budget = budget
        self.alone = alone
        self.gain = _GAIN * max(1e-300, *(abs(value) for i, row in enumerate(rows) for value in row[:i] + row[i + 1 :]))
        self._known: dict[int, tuple[float, int]] = {}
        limits = [self.best_group(1 << j)[0] for j in range(len(rows))]
        # first the tasks whose affinities differ most: that is where a wrong set costs most
        spread = [limits[j] - min(row[j] for i, row in enumerate(rows) if i != j) for j in range(len(rows))]
        self.order = sorted(range(len(rows)), key=lambda j: -spread[j])
        self.rest = [0.0]  # most that the last tasks of the order can add
        for j in reversed(self.order):
            self.rest.insert(0, self.rest[0] + limits[j])

    def best_group(self, served: int) -> tuple[float, int]:
        """Return the largest sum of affinities onto these tasks in one group, and the smallest such group."""
        if served not in self._known:
            self._known[served] = self._best_group(served)
        return self._known[served]

    def _best_group(self, served: int) -> tuple[float, int]:
        inside = _members(served)
        total = sum(self.rows[i][j] for i in inside for j in inside if i != j)
        helpers = [(sum(self.rows[i][j] for j in inside), i) for i in range(len(self.rows)) if not served >> i & 1]
        helpers.sort(key=lambda helper: -helper[0])
        size = len(inside)
        best = (self.alone[inside[0]], served) if size == 1 else (total / (size - 1), served)
        group = served
        for help_, i in helpers:
            total, size, group = total + help_, size + 1, group | 1 << i
            if total / (size - 1) > best[0] + self.gain:
                best = (total / (size - 1), group)
        return best

    def run(self) -> list[int]:
        """Return the best division."""
        self.best = self._climb()
        self.best_score = self._score(self.best)
        self._extend([], 0.0, 0)
        return self.best

    def _extend(self, blocks: list[int], score: float, depth: int) -> None:
        if score + self.rest[depth] <= self.best_score + self.gain:
            return
        if depth == len(self.order):
            self.best, self.best_score = list(blocks), score
            return
        task = 1 << self.order[depth]
        choices = []
        for number, block in enumerate(blocks):
            choices.append((score - self.best_group(block)[0] + self.best_group(block | task)[0], number, block | task))
        if len(blocks) < self.budget:
            choices.append((score + self.best_group(task)[0], len(blocks), task))
        for value, number, block in sorted(choices, key=lambda choice: -choice[0]):
            self._extend([*blocks[:number], block, *blocks[number + 1 :]], value, depth + 1)

    def _climb(self) -> list[int]:
        """Return a good division to begin with: move single tasks as long as that helps."""
        blocks = [(1 << len(self.rows)) - 1]
        score = self._score(blocks)
        while True:
            better = max(self._moves(blocks), key=self._score, default=blocks)
            if self._score(better) <= score + self.gain:
                return blocks
            blocks, score = better, self._score(better)

    def _moves(self, blocks: list[int]) -> list[list[int]]:
        moves = []
        for j in range(len(self.rows)):
            without = [block & ~(1 << j) for block in blocks]
            for number in range(len(blocks) + (len(blocks) < self.budget)):
                moved = [*without, 0][: len(blocks) + 1]
                moved[number] |= 1 << j
                moves.append([block for block in moved if block])
        return moves

    def _score(self, blocks: list[int]) -> float:
        return sum(self.best_group(block)[0] for block in blocks)


def spectral_task_groups(affinity: Affinity, k: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    r"""Divide the tasks into k groups by spectral clustering of the symmetrized affinity.

    The weights are :math:`W = (Z + Z^T) / 2`, less the smallest of them if that is negative, with a diagonal of zero.
    The tasks are clustered by k-means on the rows of the k first eigenvectors of
    :math:`D^{-1/2} W D^{-1/2}`, scaled to length one. Each task is in one group. This is quick for any number of tasks
    but knows nothing of how much a group gains.

    Args:
        affinity: Entry (i, j) is the affinity of task i onto task j. The diagonal is not used.
        k: Number of groups, from 1 to K.
        seed: Seed of the starts of k-means.

    Shape:
        - affinity: ``(K, K)``.

    Returns:
        The groups, by number in ascending order.

    Raises:
        ValueError: If there are fewer than two tasks, an affinity is not finite, the shape is wrong, or ``k`` is not
            between 1 and K.

    Example:
        >>> spectral_task_groups([[0, 5, 0, 1], [4, 0, 1, 0], [0, 0, 0, 6], [1, 0, 5, 0]], k=2)
        ((0, 1), (2, 3))

    References:
        Ng, Jordan, Weiss. *On Spectral Clustering: Analysis and an Algorithm*. NeurIPS 2001.
        https://papers.nips.cc/paper/2092-on-spectral-clustering-analysis-and-an-algorithm
    """
    rows = torch.tensor(_checked(affinity), dtype=torch.float64)
    _check_budget("spectral_task_groups", "k", k, len(rows))
    off_diagonal = ~torch.eye(len(rows), dtype=torch.bool)
    weights = (rows + rows.T) / 2
    weights = torch.where(off_diagonal, weights - weights[off_diagonal].min().clamp(max=0), 0)
    scale = weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny).rsqrt()
    scale = torch.where(weights.sum(1) > 0, scale, 0)
    vectors = torch.linalg.eigh(scale[:, None] * weights * scale).eigenvectors[:, -k:]
    points = torch.nn.functional.normalize(vectors, dim=1)
    labels = _k_means(points, k, torch.Generator().manual_seed(seed))
    return tuple(sorted(tuple(torch.where(labels == label)[0].tolist()) for label in range(k)))


def _k_means(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return the labels of the best of several runs; every label is in use."""
    best, best_cost = torch.zeros(len(points), dtype=torch.long), torch.inf
    for _ in range(_RESTARTS):
        chosen = [int(torch.randint(len(points), (1,), generator=generator))]
        while len(chosen) < k:  # the next start is drawn by its squared distance, and never one that is taken
            distances = torch.cdist(points, points[chosen]).square().amin(1) + 1e-12
            distances[chosen] = 0
            chosen.append(int(torch.multinomial(distances, 1, generator=generator)))
        centres, labels = points[chosen], torch.full((len(points),), -1)
        while True:
            costs = torch.cdist(points, centres).square()
            nearest = costs.argmin(1)
            for label in range(
                k
            ):  # a cluster that lost all takes the point that is worst off and not the last of its own
                if not (nearest == label).any():
                    own = costs.gather(1, nearest[:, None])[:, 0]
                    movable = torch.bincount(nearest, minlength=k)[nearest] > 1
                    nearest[int(torch.where(movable, own, -1.0).argmax())] = label
            if nearest.equal(labels):
                break
            labels = nearest
            centres = torch.stack([points[labels == label].mean(0) for label in range(k)])
        cost = float(torch.cdist(points, centres).square().gather(1, labels[:, None]).sum())
        if cost < best_cost - 1e-12:
            best, best_cost = labels, cost
    return best


def _checked(affinity: Affinity) -> list[list[float]]:
    matrix = affinity if isinstance(affinity, Tensor) else torch.tensor(affinity, dtype=torch.float64)
    matrix = matrix.detach().to("cpu", torch.float64, copy=True)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"task grouping: affinity must have the shape (K, K), got {tuple(matrix.shape)}.")
    if len(matrix) < 2:
        raise ValueError(f"task grouping: affinity must be between at least 2 tasks, got {len(matrix)}.")
    bad = (~matrix.isfinite()).fill_diagonal_(False).nonzero().tolist()
    if bad:
        i, j = bad[0]
        raise ValueError(
            f"task grouping: affinity must be finite, got {float(matrix[i, j])} of task {i} onto task {j}; measure "
            "this pair or leave one of its tasks out."
        )
    rows: list[list[float]] = matrix.fill_diagonal_(0).tolist()
    return rows


def _self_affinities(given: Sequence[float] | float | None, count: int) -> list[float]:
    if given is None:
        return [-torch.inf] * count
    values = [float(given)] * count if isinstance(given, int | float) else [float(value) for value in given]
    if len(values) != count or not torch.tensor(values).isfinite().all():
        raise ValueError(
            f"task grouping: self_affinity must be None, a finite number, or one for each of the {count} tasks, "
            f"got {given}."
        )
    return values


def _check_budget(owner: str, argument: str, value: int, tasks: int) -> None:
    if not 1 <= value <= tasks:
        raise ValueError(f"{owner}: {argument} must be between 1 and the number of tasks, {tasks}, got {value}.")


def _members(mask: int) -> tuple[int, ...]:
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
