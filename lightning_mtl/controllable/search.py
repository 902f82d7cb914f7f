"""The widths that suit a preference and a budget."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mtl.controllable.module import ControllableModule, WidthConfig


@dataclass(frozen=True)
class WidthSearchResult:
    """The best configuration that a search found.

    Args:
        config: Its widths.
        flops: Floating point operations of one sample, those of the decoders included.
        score: Sum over the tasks of preference times metric, relative to the full network.
        metrics: Task -> metric -> value.
        evaluated: Number of configurations that were evaluated.
    """

    config: WidthConfig
    flops: int
    score: float
    metrics: dict[str, dict[str, float]]
    evaluated: int


def normalised_preference(preference: Mapping[str, float]) -> dict[str, float]:
    """Return the preference with sum 1; warn where it had another.

    Raises:
        ValueError: If a value is negative, or none is positive.
    """
    total = sum(preference.values())
    if any(value < 0 for value in preference.values()) or not total > 0:
        raise ValueError(f"search_widths: preference must be non-negative with a positive sum, got {dict(preference)}.")
    if abs(total - 1) > 1e-3:
        warnings.warn(f"search_widths: preference sums to {total:g}, not to 1; it is normalised.", stacklevel=3)
    return {task: value / total for task, value in preference.items()}


def decoder_widths(preference: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Return the width of every decoder: the one nearest to its preference relative to the largest.

    Args:
        preference: Weight of every task, not negative, one of them positive.
        widths: The widths that a decoder may have; the larger of two that are equally near is taken.

    Raises:
        ValueError: If a preference is negative, or none is positive.

    Example:
        >>> decoder_widths([0.7, 0.2, 0.1], [0.25, 0.5, 0.75, 1.0])
        [1.0, 0.25, 0.25]
    """
    if min(preference) < 0 or not max(preference) > 0:
        raise ValueError(
            f"decoder_widths: preference must be non-negative with a positive one, got {list(preference)}."
        )
    goals = [max(value / max(preference), min(widths)) for value in preference]
    nearest = [min((round(abs(width - goal), 9), -width) for width in widths) for goal in goals]
    return [-width for _, width in nearest]


def search_widths(
    module: ControllableModule,
    preference: Mapping[str, float],
    budget: float,
    batches: Iterable[Any],
    input_size: Sequence[int],
    metrics: Mapping[str, str] | None = None,
    population: int = 32,
    generations: int = 10,
    mutation: float = 0.1,
    max_exhaustive: int = 625,
    seed: int = 0,
) -> WidthSearchResult:
    """Find the widths that serve a preference best within a budget.

    Decoders get width by their task's preference (:func:`decoder_widths`); if then not even the smallest encoder fits,
    the least preferred decoder is narrowed first. The rest of the budget goes to the encoder, whose stages are
    searched: all combinations where they are few, else by evolution.

    Args:
        module: The trained network.
        preference: Task -> weight, not negative; normalised to sum 1.
        budget: Floating point operations of one sample, as ``module.flops`` counts them.
        batches: Validation batches ``(inputs, targets)`` on the module's device; kept in a list.
        input_size: Shape of one sample.
        metrics: Task -> metric that scores it; the first of the task's metrics where not given.
        population: Number of configurations of a generation.
        generations: Number of generations.
        mutation: Probability that the width of a stage is drawn anew.
        max_exhaustive: Largest number of combinations that are all evaluated.
        seed: Seed of the evolution.

    Raises:
        ValueError: If the preference is negative or names other tasks, or the budget is below the smallest network.

    Note:
        The body of the paper was not at hand. This follows the rule of its abstract, compute to the decoders of the
        preferred tasks and then a search of the shared encoder; the details are this package's.

    References:
        Aich, Schulter, Roy-Chowdhury, Chandraker, Suh. *Efficient Controllable Multi-Task Architectures*. ICCV 2023.
        https://arxiv.org/abs/2308.11744.
    """
    tasks = list(module.tasks)
    if set(preference) != set(tasks):
        raise ValueError(f"search_widths: preference must name the tasks {tasks}, got {list(preference)}.")
    if population < 2 or generations < 1 or not 0 <= mutation <= 1:
        raise ValueError(
            "search_widths: population must be at least 2, generations at least 1 and mutation in [0, 1], got "
            f"{population}, {generations} and {mutation}."
        )
    weights = normalised_preference(preference)
    data = list(batches)
    encoder = module.slimmable_encoder
    decoders = _decoders_within(module, weights, budget, input_size)
    directions = module.higher_is_better()
    chosen = {task: (metrics or {}).get(task) or next(iter(directions[task])) for task in tasks}
    reference = module.evaluate(module.full, data)
    costs: dict[tuple[float, ...], int] = {}
    scores: dict[tuple[float, ...], tuple[float, dict[str, dict[str, float]]]] = {}

    def fits(stages: tuple[float, ...]) -> bool:
        if stages not in costs:
            costs[stages] = sum(module.flops(WidthConfig(stages, decoders), input_size).values())
        return costs[stages] <= budget

    def score(stages: tuple[float, ...]) -> float:
        if stages not in scores:
            found = module.evaluate(WidthConfig(stages, decoders), data)
            value = 0.0
            for task, metric in chosen.items():
                sign = 1 if directions[task][metric] else -1
                value += sign * weights[task] * found[task][metric] / reference[task][metric]
            scores[stages] = value, found
        return scores[stages][0]

    count = len(encoder.channels)
    if len(encoder.widths) ** count <= max_exhaustive:
        candidates = [stages for stages in itertools.product(encoder.widths, repeat=count) if fits(stages)]
        best = max(candidates, key=score)
    else:
        stream = random.Random(seed)
        smallest = (encoder.widths[0],) * count
        alive = {smallest} | {(width,) * count for width in encoder.widths if fits((width,) * count)}
        for _ in range(generations):
            for _ in range(50 * population):  # a tight budget may have fewer members
                if len(alive) >= population:
                    break
                mother, father = (stream.choice(sorted(alive)) for _ in range(2))
                child = tuple(
                    stream.choice(encoder.widths) if stream.random() < mutation else stream.choice(pair)
                    for pair in zip(mother, father, strict=True)
                )
                if fits(child):
                    alive.add(child)
            alive = set(sorted(alive, key=lambda stages: (-score(stages), stages))[: max(2, population // 2)])
        best = max(sorted(alive), key=score)
    value, found = scores[best][0], scores[best][1]
    return WidthSearchResult(WidthConfig(best, decoders), costs[best], value, found, len(scores))


def _decoders_within(
    module: ControllableModule, weights: Mapping[str, float], budget: float, input_size: Sequence[int]
) -> dict[str, float]:
    """Return decoder widths that leave room for the smallest encoder."""
    smallest = module.smallest
    least = sum(module.flops(smallest, input_size).values())
    if budget < least:
        raise ValueError(
            f"search_widths: budget must be at least the {least} operations of the smallest network, got {budget}."
        )
    top = max(weights.values())
    decoders = {task: decoder_widths([weight, top], module.decoder(task).widths)[0] for task, weight in weights.items()}
    for task in sorted(weights, key=lambda task: weights[task]):
        for width in reversed(module.decoder(task).widths):
            if sum(module.flops(WidthConfig(smallest.encoder, decoders), input_size).values()) <= budget:
                return decoders
            decoders[task] = min(decoders[task], width)
    return decoders
