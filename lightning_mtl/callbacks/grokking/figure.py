"""The picture of a run: both curves with their two times, and what the kernel did meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_mtl.callbacks.grokking.curves import Curves
from lightning_mtl.callbacks.grokking.detection import GrokkingTimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def draw(curves: Mapping[str, Curves], times: Mapping[str, GrokkingTimes], names: tuple[str, str]) -> Figure:
    """Return a figure with one row a task: the curves on the left, the kernel's measures on the right.

    Args:
        curves: Task -> what is remembered of it.
        times: Task -> when it was memorised and generalised.
        names: Names of the training and the validation metric.
    """
    from matplotlib.figure import Figure

    measured = any(found.measures for found in curves.values())
    columns = 2 if measured else 1
    figure = Figure(figsize=(5.5 * columns, 3.4 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), columns, squeeze=False)
    for row, (task, found) in zip(axes, curves.items(), strict=True):
        _draw_curves(row[0], task, found, times[task], names)
        if measured:
            _draw_measures(row[1], found, times[task])
    return figure


def _draw_curves(axis: Axes, task: str, found: Curves, times: GrokkingTimes, names: tuple[str, str]) -> None:
    for values, color, name in ((found.train, _BLUE, names[0]), (found.val, _ORANGE, names[1])):
        axis.plot(found.steps, values, color=color, label=name.format(task=task), linewidth=1.5)
    finite = [value for value in (*found.train, *found.val) if value == value]
    if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
        axis.set_yscale("log")
    _mark(axis, found.steps, times)
    axis.set_title(f"{task}: {times.state}" + ("" if times.lag is None else f", lag {times.lag} steps"))
    axis.legend(fontsize="small")


def _draw_measures(axis: Axes, found: Curves, times: GrokkingTimes) -> None:
    for name, color, label in (
        ("alignment", _GREEN, "alignment of the kernel with the targets"),
        ("kernel_distance", _GREY, "distance of the kernel from initialization"),
    ):
        if name in found.measures:
            axis.plot(found.measured_at, found.measures[name], color=color, label=label, marker=".", linewidth=1.5)
    axis.set_ylim(bottom=0)
    _mark(axis, found.steps, times)
    axis.set_title("tangent kernel")
    if found.measures:
        axis.legend(fontsize="small")


def _mark(axis: Axes, steps: list[int], times: GrokkingTimes) -> None:
    for step, color, label in (
        (times.memorised_at, _BLUE, "memorised"),
        (times.generalised_at, _ORANGE, "generalised"),
    ):
        if step is not None:
            axis.axvline(step, color=color, linestyle=":", linewidth=1.2, label=f"{label} at {step}")
    positive = [step for step in steps if step > 0]
    if positive and positive[-1] > 20 * positive[0]:
        axis.set_xscale("log")
    axis.set_xlabel("step")
