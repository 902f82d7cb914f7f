"""GLUE's development scores of constant predictions, beside those of trained runs.

The constant is the most frequent class of the development rows themselves, the best that can be had without reading a
text; for STS-B it is their mean. With results, the metrics of the last validation in their ``metrics.json`` (written by
every run of the command line) stand beside it.

Usage: python benchmarks/glue_baselines.py --data FOLDER_OF_GLUE [METRICS_JSON ...]
"""

from __future__ import annotations

import argparse
import collections
import json
import math
from pathlib import Path

import torch

from lightning_mtl.callbacks import GLUEAverage
from lightning_mtl.data.text import Classes, GLUEDataModule
from lightning_mtl.tasks import TextClassification, TextRegression


def constant_scores(data: GLUEDataModule) -> dict[str, float]:
    """Return ``"task/metric"`` -> value of the constant prediction on the development files."""
    values: dict[str, float] = {}
    for name, form in data.forms().items():
        dev = [str(label) for part in data.read(name, "val") for label in part.targets or ()]
        names = GLUEAverage().metrics[name]
        task: TextClassification | TextRegression
        if isinstance(form, Classes):
            task = TextClassification(len(form.labels), [*names])  # type: ignore[list-item]
            constant = form.labels.index(collections.Counter(dev).most_common(1)[0][0])
            target = torch.tensor([form.labels.index(label) for label in dev])
            prediction = torch.nn.functional.one_hot(torch.full_like(target, constant), len(form.labels)).float()
        else:
            task = TextRegression()
            target = torch.tensor([float(score) for score in dev])
            prediction = torch.full((len(dev), 1), float(target.mean()))
        task.update_metrics(prediction, target)
        found = task.metrics.compute()
        values |= {f"{name}/{metric}": float(found[metric]) for metric in names}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of GLUE")
    parser.add_argument("results", nargs="*", type=Path, help="metrics.json of runs")
    arguments = parser.parse_args()
    constant = constant_scores(GLUEDataModule(root=arguments.data))
    columns = {"constant": constant}
    for path in arguments.results:
        report = json.loads(path.read_text())
        last = report["last"]["metrics"]
        columns[f"seed {report['seed']}"] = {
            f"{task}/{metric}": math.nan if value is None else value
            for task, metrics in last.items()
            for metric, value in metrics.items()
        }
    print("| task | metric | " + " | ".join(columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    for key in constant:
        cells = [values.get(key, math.nan) for values in columns.values()]
        shown = ["0 (undefined)" if math.isnan(cell) else f"{cell:.3f}" for cell in cells]
        print(f"| {' | '.join(key.split('/'))} | " + " | ".join(shown) + " |")
    scored = [{key: value for key, value in values.items() if key in constant} for values in columns.values()]
    averages = [GLUEAverage().average(values) for values in scored]
    print("| average | | " + " | ".join(f"{average:.1f}" for average in averages) + " |")


if __name__ == "__main__":
    main()
