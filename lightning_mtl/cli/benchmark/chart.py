"""A benchmark as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_mtl.cli.benchmark.report import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.8  # of the distance between two groups


def write_chart(summary: Summary, file: Path) -> bool:
    """Draw the change of every method against the single-task models: over all tasks, and for each of them.

    Bars are means over the seeds, whiskers the sample standard deviation, dots the seeds.

    Args:
        summary: The numbers.
        file: Picture to write.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    methods = [row for row in summary.rows if row.delta_m]
    if not methods:
        return False
    tasks = list(dict.fromkeys(task for row in methods for task in summary.per_task[row.label]))
    palette = colormaps["tab10" if len(methods) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    widths = [len(methods) * 0.6 + 1.2, len(methods) * len(tasks) * 0.32 + 1.5]
    figure = Figure(figsize=(max(sum(widths), 7), 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=widths)
    for i, row in enumerate(methods):
        color = palette[i % len(palette)]
        _bar(left, i, row.delta_m, _BAR, color, row.label)
        for k, task in enumerate(tasks):
            place = k - _BAR / 2 + (i + 0.5) * _BAR / len(methods)
            _bar(right, place, summary.per_task[row.label].get(task, []), _BAR / len(methods), color)
    left.set_xticks(range(len(methods)), [row.label for row in methods], rotation=30, ha="right")
    left.set_ylabel("change against single-task models in %", fontsize=9)
    left.set_title("Δm, all tasks", fontsize=10)
    right.set_xticks(range(len(tasks)), tasks)
    right.set_title("mean over the metrics of each task", fontsize=10)
    for axis in (left, right):
        axis.axhline(0, color="black", linewidth=0.8)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    seeds = sorted({len(row.delta_m) for row in methods})
    count = " to ".join(str(number) for number in (seeds if len(seeds) == 1 else (seeds[0], seeds[-1])))
    figure.supxlabel(f"bars: mean, whiskers: ± standard deviation, dots: {count} seeds; up is better", fontsize=8)
    figure.legend(loc="outside upper center", ncols=min(len(methods), 5), fontsize=8, frameon=False)
    figure.savefig(file, dpi=130)
    return True


def _bar(
    axis: Axes, place: float, values: Sequence[float], width: float, color: tuple[float, ...], label: str | None = None
) -> None:
    if not values:
        return
    spread = statistics.stdev(values) if len(values) > 1 else None
    axis.bar(
        place,
        statistics.fmean(values),
        width * 0.92,
        color=color,
        alpha=0.8,
        label=label,
        yerr=spread,
        capsize=3,
        error_kw={"elinewidth": 1},
    )
    axis.plot([place] * len(values), values, linestyle="none", marker="o", markersize=3, color="black", alpha=0.7)
