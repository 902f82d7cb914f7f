"""How much of the trade-off between tasks and compute one network offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mtl.controllable.module import ControllableModule
from lightning_mtl.controllable.search import WidthSearchResult, search_widths


@dataclass(frozen=True)
class Controllability:
    """What a sweep of preferences reached within every budget.

    Args:
        mean: Mean of the hypervolumes.
        hypervolumes: Budget -> hypervolume of the points that were reached within it.
        points: Budget -> one point a preference: by how much every task's metric is better than the reference.
        results: Budget -> what the search found for every preference.
    """

    mean: float
    hypervolumes: dict[float, float]
    points: dict[float, list[tuple[float, ...]]]
    results: dict[float, list[WidthSearchResult]]


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """Return the volume that is dominated by some of the points and dominates the reference; higher values are better.

    The last coordinate is swept from above; between two of its values the volume is that of the other coordinates.

    Args:
        points: Points of as many coordinates as the reference; those that are not above it in all add nothing.
        reference: The lower corner.

    Raises:
        ValueError: If the numbers of coordinates differ.

    Example:
        >>> hypervolume([(2.0, 1.0), (1.0, 3.0), (0.5, 0.5)], (0.0, 0.0))
        4.0

    References:
        Zitzler, Thiele. *Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength Pareto
        Approach*. IEEE Transactions on Evolutionary Computation 3(4), 1999. https://doi.org/10.1109/4235.797969.
    """
    rows = [tuple(float(value) for value in point) for point in points]
    if wrong := [row for row in rows if len(row) != len(reference)]:
        raise ValueError(
            f"hypervolume: points must have {len(reference)} coordinates like the reference, got {wrong[0]}."
        )
    above = [row for row in rows if all(value > low for value, low in zip(row, reference, strict=True))]
    if not above:
        return 0.0
    if len(reference) == 1:
        return max(row[0] for row in above) - reference[0]
    levels = sorted({row[-1] for row in above}, reverse=True)
    volume = 0.0
    for level, lower in zip(levels, [*levels[1:], reference[-1]], strict=True):
        slab = [row[:-1] for row in above if row[-1] >= level]
        volume += (level - lower) * hypervolume(slab, reference[:-1])
    return volume


def controllability(
    module: ControllableModule,
    preferences: Iterable[Mapping[str, float]],
    budgets: Iterable[float],
    batches: Iterable[Any],
    input_size: Sequence[int],
    metrics: Mapping[str, str] | None = None,
    reference: Mapping[str, float] | None = None,
    **search: Any,
) -> Controllability:
    """Sweep preferences within several budgets, and measure the region of task performances that is reached.

    A point holds the metric of every task, with the sign that makes higher values better. The sweep is a loop over
    :func:`search_widths`.

    Args:
        module: The trained network.
        preferences: Each task -> weight.
        budgets: Floating point operations of one sample, as ``module.flops`` counts them.
        batches: Validation batches ``(inputs, targets)`` on the module's device; kept in a list.
        input_size: Shape of one sample.
        metrics: Task -> metric that scores it; the first of the task's metrics where not given.
        reference: Task -> value of that metric at the lower corner; None takes the smallest network's. To compare
            networks, give all of them the same.
        search: Further arguments of :func:`search_widths`.

    Raises:
        ValueError: If there is no preference or no budget, the reference lacks a task, or the search refuses one.

    Note:
        The body of the paper was not at hand. Metrics, preferences and reference point are this package's, so the
        numbers compare networks here, not with the paper's.

    References:
        Aich, Schulter, Roy-Chowdhury, Chandraker, Suh. *Efficient Controllable Multi-Task Architectures*. ICCV 2023.
        https://arxiv.org/abs/2308.11744.
    """
    data, wishes, limits = list(batches), list(preferences), [float(budget) for budget in budgets]
    if not wishes or not limits:
        raise ValueError(
            f"controllability: preferences and budgets must not be empty, got {len(wishes)} and {len(limits)}."
        )
    directions = module.higher_is_better()
    chosen = {task: (metrics or {}).get(task) or next(iter(directions[task])) for task in module.tasks}
    if reference is not None and set(reference) != set(chosen):
        raise ValueError(f"controllability: reference must name the tasks {list(chosen)}, got {list(reference)}.")
    signs = {task: 1 if directions[task][metric] else -1 for task, metric in chosen.items()}
    if reference is None:
        least = module.evaluate(module.smallest, data)
        reference = {task: least[task][metric] for task, metric in chosen.items()}
    results, points, volumes = {}, {}, {}
    for budget in limits:
        results[budget] = [
            search_widths(module, preference, budget, data, input_size, metrics, **search) for preference in wishes
        ]
        points[budget] = [
            tuple(sign * (result.metrics[task][chosen[task]] - reference[task]) for task, sign in signs.items())
            for result in results[budget]
        ]
        volumes[budget] = hypervolume(points[budget], [0.0] * len(chosen))
    return Controllability(sum(volumes.values()) / len(volumes), volumes, points, results)
