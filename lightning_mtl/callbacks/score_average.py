"""One number for a benchmark of several tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from lightning_mtl.callbacks.continual.stream import publish_numbers

GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("binary_f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("binary_f1", "accuracy"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
"""Task of GLUE -> the metrics whose mean is its score."""


class ScoreAverage(Callback):
    r"""Log the average score of a benchmark: the mean over its tasks of the mean of each task's metrics.

    .. math:: 100 \cdot \frac{1}{|T|} \sum_{t \in T} \frac{1}{|M_t|} \sum_{m \in M_t} m

    over the tasks :math:`T` of the benchmark that were evaluated, with the metrics :math:`M_t` that the benchmark
    names. After every validation and test it is logged as ``val/<name>`` or ``test/<name>``, beside
    ``<stage>/<name>_num_tasks``, the number of tasks in it, and stands in ``trainer.callback_metrics``, so that a
    ``ModelCheckpoint`` can monitor it, or an ``EarlyStopping`` that is listed after this callback. Tasks of the
    benchmark that were not evaluated are left out, and named once in the log: an average over some tasks is not the
    benchmark's score.

    Args:
        metrics: Task -> names of the metrics that are its score, as the task logs them.
        name: Name under which the average is logged.
        scale: Factor on the average.

    Raises:
        ValueError: If there is no task, or a task without metrics.
        KeyError: If an evaluated task does not log a metric that is part of its score.

    Note:
        A metric that is not defined (the correlation of constant predictions) counts as 0, as a submission of such
        predictions does, so that leaving it out cannot raise the average. Read the average of the last evaluation in
        ``trainer.callback_metrics`` after ``fit``.

    Example:
        >>> callback = ScoreAverage({"sentiment": ["accuracy"], "similarity": ["pearson", "spearman"]})
        >>> values = {"sentiment/accuracy": 0.75, "similarity/pearson": 0.25, "similarity/spearman": 0.75}
        >>> callback.average(values)
        62.5
    """

    def __init__(self, metrics: Mapping[str, Sequence[str]], name: str = "average", scale: float = 100.0) -> None:
        super().__init__()
        if not metrics or not all(metrics.values()):
            raise ValueError(
                f"{type(self).__name__}: metrics must name tasks with one metric each at least, got {dict(metrics)}."
            )
        self.metrics = {task: list(names) for task, names in metrics.items()}
        self.name = name
        self.scale = scale
        self._missing_said = False

    def average(self, values: Mapping[str, float]) -> float:
        """Return the average score, NaN without any task.

        Args:
            values: ``"task/metric"`` -> value; tasks of which there is none are left out.
        """
        scores = []
        for task, names in self.metrics.items():
            if not any(key.startswith(f"{task}/") for key in values):
                continue
            absent = [name for name in names if f"{task}/{name}" not in values]
            if absent:
                raise KeyError(
                    f"{type(self).__name__}: task {task!r} must log {names}, which are its score, and logs no "
                    f"{absent}; name them in the metrics of the task."
                )
            found = [values[f"{task}/{name}"] for name in names]
            scores.append(sum(value if math.isfinite(value) else 0.0 for value in found) / len(found))
        return self.scale * sum(scores) / len(scores) if scores else math.nan

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the average of a validation."""
        if not trainer.sanity_checking:
            self._publish(trainer, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the average of a test."""
        self._publish(trainer, "test")

    def _publish(self, trainer: pl.Trainer, stage: str) -> None:
        logged = {
            name.removeprefix(f"{stage}/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(f"{stage}/")
        }
        # a task without any label has a loss of NaN, and no score
        evaluated = [task for task in self.metrics if math.isfinite(logged.get(f"{task}/loss", math.nan))]
        values = {name: value for name, value in logged.items() if name.partition("/")[0] in evaluated}
        missing = [task for task in self.metrics if task not in evaluated]
        if missing and not self._missing_said:
            self._missing_said = True
            rank_zero_info(f"{type(self).__name__}: {stage}/{self.name} is without {', '.join(missing)}.")
        if evaluated:
            numbers = {self.name: self.average(values), f"{self.name}_num_tasks": float(len(evaluated))}
            publish_numbers(trainer, {f"{stage}/{name}": value for name, value in numbers.items()})


class GLUEAverage(ScoreAverage):
    """Log GLUE's score as ``val/glue_average``: the mean over the tasks of the mean of each task's metrics, times 100.

    :class:`ScoreAverage` with the metrics of GLUE: Matthews' correlation for CoLA, accuracy for SST-2, MNLI, QNLI, RTE
    and WNLI, accuracy and F1 for MRPC and QQP, Pearson's and Spearman's correlations for STS-B.

    Args:
        name: Name under which the average is logged.

    Note:
        Of MNLI, the development files that the data module reads count as one task, as in the benchmark's average.

    Example:
        >>> GLUEAverage().metrics["mrpc"]
        ['binary_f1', 'accuracy']

    References:
        Wang, Singh, Michael, Hill, Levy, Bowman. *GLUE: A Multi-Task Benchmark and Analysis Platform for Natural
        Language Understanding*. ICLR 2019. https://arxiv.org/abs/1804.07461, Sec. 3.
    """

    def __init__(self, name: str = "glue_average") -> None:
        super().__init__(GLUE_METRICS, name)
