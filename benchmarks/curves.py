"""Draw how the validation metrics of a run moved, one panel a metric.

    python benchmarks/curves.py RUN_DIR --metrics segmentation/miou depth/abs_error normals/mean_angle --out curve.png

Reads the TensorBoard file that a run wrote; several runs become several lines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def series(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a scalar."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    found = events.Scalars(tag)
    return [event.step for event in found], [event.value for event in found]


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders with a TensorBoard file")
    parser.add_argument("--metrics", nargs="+", required=True, help="<task>/<metric>")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    width = 3.2 * len(options.metrics)
    figure, axes = plt.subplots(1, len(options.metrics), figsize=(width, 2.6), squeeze=False, layout="constrained")
    for axis, metric in zip(axes[0], options.metrics, strict=True):
        for run in options.runs:
            steps, values = series(run, f"val/{metric}")
            axis.plot(range(1, len(steps) + 1), values, marker=".", label=run.parent.name)
        axis.set_title(metric.replace("/", ": ").replace("_", " "), fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    if len(options.runs) > 1:
        axes[0][0].legend(fontsize=8)
    figure.savefig(options.out, dpi=130)


if __name__ == "__main__":
    main()
