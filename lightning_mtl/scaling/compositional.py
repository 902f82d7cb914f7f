"""Is it composition? Accuracy on unseen combinations of factors by what the training pool holds of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

Model = TypeVar("Model")


class Pools(Protocol):
    """Training pools of one target, as ``CompositionalSplit`` gives them."""

    def pool(self, condition: str = "all", seed: int = 0) -> list[str]:
        """Return the names of the data sets of a condition."""


class Registry(Protocol):
    """Data sets with factors, as ``CompositionRegistry`` holds them."""

    def split(self, target: str, allow_shared: Sequence[int] | None = None) -> Pools:
        """Return the pools for a target."""


def spread(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Spread a number of items over data sets as evenly as their sizes allow.

    Args:
        total: Number of items in all.
        sizes: Data set -> number of items that it has.

    Raises:
        ValueError: If they have fewer items together.

    Example:
        >>> spread(10, {"a": 2, "b": 9, "c": 9})
        {'a': 2, 'b': 4, 'c': 4}
    """
    if total > sum(sizes.values()):
        raise ValueError(f"spread: total must be at most the {sum(sizes.values())} items of all, got {total}.")
    counts: dict[str, int] = {}
    left = total
    for place, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        counts[name] = min(sizes[name], left // (len(sizes) - place))
        left -= counts[name]
    return {name: counts[name] for name in sizes if counts[name]}


def compositional_report(
    train_fn: Callable[[Mapping[str, int], int], Model],
    eval_fn: Callable[[Model, str], float],
    registry: Registry,
    targets: Sequence[str],
    conditions: Sequence[str],
    seeds: Sequence[int],
    *,
    sizes: Mapping[str, int],
    allow_shared: Sequence[int] | None = None,
    equal_sizes: bool = True,
    few_shot: int = 0,
    chance: Mapping[str, float] | None = None,
    on_run: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train on every pool of a grid of targets, conditions and seeds, and test on the targets.

    A condition is that of ``CompositionalSplit.pool``: ``"all"``, ``"related"``, ``"unrelated"``,
    ``"without:<factor>"``, its control ``"random:<factor>"`` (as many data sets, drawn at random) and ``"none"``, the
    untrained model. ``"+target"`` behind it adds ``few_shot`` items of the target: ``"related+target"`` against
    ``"none+target"`` tells what related data add to a few samples. Leaving out a factor leaves out data, too: by
    default all pools of a target are cut to the number of items of the smallest.

    Args:
        train_fn: Returns a model trained on the given number of items of each data set, with a seed.
        eval_fn: Returns the accuracy of a model on a target, on items that are never trained on.
        registry: The data sets; a ``CompositionRegistry``.
        targets: Names of the data sets that are held out, one at a time.
        conditions: Names of the conditions. The first is the reference of the gains.
        seeds: Seeds.
        sizes: Data set -> number of training items that it has.
        allow_shared: Numbers of factors that a related data set may share with the target; None allows any.
        equal_sizes: Whether the pools of a target get the same number of items.
        few_shot: Number of items of the target for ``"+target"``.
        chance: Target -> accuracy of guessing; 0.5 where not given.
        on_run: Called with every row as soon as it is there.

    Returns:
        One row a run: ``target``, ``condition``, ``seed``, ``datasets`` and ``items`` in the pool, ``accuracy``,
        ``above_chance``, ``normalized`` (``above_chance`` as a share of what is possible) and ``gain``, the accuracy
        less that of the first condition with the same target and seed.

    Raises:
        ValueError: If nothing is to be run, a pool is empty that should not be, or ``few_shot`` does not fit.

    References:
        Cai, Chen, Wang, Wang, Deng, Song, Chen, Zhang, Wang. *Exploring Compositional Generalization of
        Multimodal LLMs for Medical Imaging*. ACL 2025.
        https://arxiv.org/abs/2412.20070.
    """
    if not targets or not conditions or not seeds:
        raise ValueError(
            "compositional_report: targets, conditions and seeds must not be empty, got "
            f"{list(targets)}, {list(conditions)} and {list(seeds)}."
        )
    if few_shot < 1 and any(condition.endswith("+target") for condition in conditions):
        raise ValueError(f"compositional_report: few_shot must be positive for '+target', got {few_shot}.")
    rows: list[dict[str, Any]] = []
    for target in targets:
        guessing = (chance or {}).get(target, 0.5)
        for seed in seeds:
            pools = _pools(registry, target, conditions, seed, sizes, allow_shared, equal_sizes)
            first: float | None = None
            for condition in conditions:
                pool = dict(pools[condition])
                if condition.endswith("+target"):
                    pool[target] = few_shot
                accuracy = float(eval_fn(train_fn(pool, seed), target))
                first = accuracy if first is None else first
                row = {
                    "target": target,
                    "condition": condition,
                    "seed": seed,
                    "datasets": len(pool),
                    "items": sum(pool.values()),
                    "accuracy": accuracy,
                    "above_chance": accuracy - guessing,
                    "normalized": (accuracy - guessing) / (1 - guessing),
                    "gain": accuracy - first,
                }
                rows.append(row)
                if on_run is not None:
                    on_run(row)
    return rows


def _pools(
    registry: Registry,
    target: str,
    conditions: Sequence[str],
    seed: int,
    sizes: Mapping[str, int],
    allow_shared: Sequence[int] | None,
    equal_sizes: bool,
) -> dict[str, dict[str, int]]:
    """Return condition -> data set -> number of items."""
    split = registry.split(target, allow_shared)
    names = {condition: split.pool(condition.removesuffix("+target"), seed) for condition in conditions}
    for condition, pool in names.items():
        if not pool and condition.removesuffix("+target") != "none":
            raise ValueError(
                f"compositional_report: the pool of condition {condition!r} for target {target!r} must not be empty; "
                "leave the condition or the target out."
            )
    pools = {condition: {name: sizes[name] for name in pool} for condition, pool in names.items()}
    if equal_sizes:
        smallest = min((sum(pool.values()) for pool in pools.values() if pool), default=0)
        pools = {condition: spread(smallest, pool) if pool else pool for condition, pool in pools.items()}
    return pools


def compare_conditions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarize the rows of :func:`compositional_report`, one row a condition.

    Accuracies are paired by target and seed with those of the first condition (Student's paired t-test, two-sided).
    Runs of one target have much in common, so with few targets the p-value flatters: ``p_targets`` is that of the same
    test on the means of the targets.

    Args:
        rows: The rows.

    Returns:
        ``condition``, ``runs``, ``accuracy`` (mean), ``std`` (of the runs), ``normalized``, ``gain``, ``p`` and
        ``p_targets``; a p-value is NaN for the first condition, below two pairs, and where all differences are equal.

    Raises:
        ModuleNotFoundError: If the extra ``scaling`` is not installed.
        ValueError: If there is no row, or a condition lacks a run that the first one has.
    """
    if not rows:
        raise ValueError("compare_conditions: rows must hold at least one run, got none.")
    found: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["condition"], {})[row["target"], row["seed"]] = row
    reference = next(iter(found.values()))
    summary = []
    for condition, runs in found.items():
        if set(runs) != set(reference):
            raise ValueError(
                f"compare_conditions: condition {condition!r} must have the runs (target, seed) of the first, "
                f"{sorted(reference)}, got {sorted(runs)}."
            )
        accuracy = np.array([runs[key]["accuracy"] for key in reference])
        gains = accuracy - np.array([row["accuracy"] for row in reference.values()])
        targets = list(dict.fromkeys(target for target, _ in reference))
        means = np.array([gains[[key[0] == target for key in reference]].mean() for target in targets])
        summary.append(
            {
                "condition": condition,
                "runs": len(runs),
                "accuracy": float(accuracy.mean()),
                "std": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else math.nan,
                "normalized": float(np.mean([runs[key]["normalized"] for key in reference])),
                "gain": float(gains.mean()),
                "p": _paired_test(gains),
                "p_targets": _paired_test(means),
            }
        )
    return summary


def _paired_test(differences: np.ndarray[Any, Any]) -> float:
    """Return the p-value of the hypothesis that differences have mean zero."""
    try:
        from scipy.stats import ttest_1samp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("compare_conditions needs `pip install lightning-mtl[scaling]`.") from error
    if len(differences) < 2 or np.ptp(differences) == 0:
        return math.nan
    return float(ttest_1samp(differences, 0.0).pvalue)
