"""Pictures of the affinities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "lookahead": "lookahead affinity, %",
    "cosine": "cosine of the gradients",
    "mean_cosine": "cosine of the mean gradients",
}
_NUMBERS_UP_TO = 12  # tasks; more leave no room for numbers in the cells


def draw_affinities(tasks: Sequence[str], matrices: Mapping[str, Tensor]) -> Figure:
    """Return one heat map for each measure.

    Args:
        tasks: Names of the tasks.
        matrices: Measure -> ``(K, K)``, rows are sources.
    """
    from matplotlib.figure import Figure

    count = len(tasks)
    longest = max(len(task) for task in tasks)
    side = max(3.2, 0.62 * count + 0.5) if count <= _NUMBERS_UP_TO else max(5.0, 0.22 * count)
    figure = Figure(figsize=((side + 1.4 + 0.08 * longest) * len(matrices), side + 0.9 + 0.08 * longest))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (measure, matrix) in zip(panels, matrices.items(), strict=True):
        lookahead = measure == "lookahead"
        shown = 100 * matrix if lookahead else matrix
        others = shown[~torch.eye(count, dtype=torch.bool)].abs()
        others = others[others.isfinite()]
        limit = max(float(others.max()), 1e-12) if lookahead and len(others) else 1.0
        image = axes.imshow(shown.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
        axes.set_facecolor("lightgray")
        _label(axes, tasks, tasks)
        axes.set_title(TITLES[measure])
        axes.set_xlabel("onto" if lookahead else "")
        axes.set_ylabel("step on" if lookahead else "")
        if count <= _NUMBERS_UP_TO:
            _write(axes, shown, limit)
        beyond = bool((shown.abs() > limit).any())  # a task's affinity onto itself is often far larger
        figure.colorbar(image, ax=axes, shrink=0.8, extend="both" if lookahead and beyond else "neither")
    return figure


def draw_layers(tasks: Sequence[str], layers: Mapping[str, Tensor], measure: str) -> Figure:
    """Return a heat map of the cosine of every pair in every layer.

    Args:
        tasks: Names of the tasks.
        layers: Layer -> ``(K, K)``.
        measure: What was measured.
    """
    from matplotlib.figure import Figure

    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    names = [f"{tasks[i]} - {tasks[j]}" for i, j in pairs]
    table = torch.stack([torch.stack([matrix[i, j] for i, j in pairs]) for matrix in layers.values()])
    width = 2.6 + 0.62 * len(pairs) + 0.07 * max(map(len, layers))
    height = 1.4 + 0.3 * len(layers) + 0.06 * max(map(len, names))
    figure = Figure(figsize=(max(4.0, width), max(3.0, height)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table.numpy(), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_facecolor("lightgray")
    _label(axes, names, list(layers))
    axes.set_title(TITLES[measure])
    if len(pairs) <= _NUMBERS_UP_TO:
        _write(axes, table, 1.0)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _label(axes: Any, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)


def _write(axes: Any, shown: Tensor, limit: float) -> None:
    for i, row in enumerate(shown.tolist()):
        for j, value in enumerate(row):
            color = "white" if abs(value) > 0.6 * limit else "black"
            text = "-" if value != value else f"{value:.2f}" if abs(value) >= 0.095 or value == 0 else f"{value:.1g}"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
