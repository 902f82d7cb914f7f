r"""Numbers that sum up how a network learns and forgets a sequence of tasks.

All of them read the accuracy matrix :math:`R`: row :math:`t` holds the accuracy on every task after training on task
:math:`t`. The rows may stop at the task just trained (a lower triangle), or hold all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

AccuracyRows = Sequence[Sequence[float]]


def average_accuracy(matrix: AccuracyRows) -> float:
    r"""Return the mean accuracy over the tasks seen, :math:`\frac1T \sum_i R_{T-1,i}`.

    Args:
        matrix: Row t: accuracy on the tasks after training on task t.

    Raises:
        ValueError: If there is no row or a row is too short.

    Example:
        >>> average_accuracy([[0.9], [0.5, 0.7]])
        0.6

    References:
        Lopez-Paz, Ranzato. *Gradient Episodic Memory for Continual Learning*. NeurIPS 2017.
        https://arxiv.org/abs/1706.08840, Eq. 2.
    """
    rows = _rows("average_accuracy", matrix)
    return sum(rows[-1][: len(rows)]) / len(rows)


def forgetting(matrix: AccuracyRows) -> float:
    r"""Return the mean drop from the best accuracy, :math:`\frac{1}{T-1} \sum_{i<T-1} (\max_t R_{ti} - R_{T-1,i})`.

    The maximum is over the rows from the one in which task i was trained to the last, so it is never negative. NaN for
    a single task.

    Args:
        matrix: Row t: accuracy on the tasks after training on task t.

    Raises:
        ValueError: If there is no row or a row is too short.

    Note:
        The paper leaves the last row out of the maximum, hence its value is negative for a task that improved at the
        end. Accuracies before a task was trained do not count, if the rows hold them.

    Example:
        >>> round(forgetting([[0.9], [0.5, 0.7]]), 6)
        0.4

    References:
        Chaudhry, Dokania, Ajanthan, Torr. *Riemannian Walk for Incremental Learning*. ECCV 2018.
        https://arxiv.org/abs/1801.10112, Eq. 3.
    """
    rows = _rows("forgetting", matrix)
    last = len(rows) - 1
    return _mean([max(row[i] for row in rows[i:]) - rows[last][i] for i in range(last)])


def backward_transfer(matrix: AccuracyRows) -> float:
    r"""Return how later tasks changed earlier ones, :math:`\frac{1}{T-1} \sum_{i<T-1} (R_{T-1,i} - R_{ii})`.

    NaN for a single task.

    Args:
        matrix: Row t: accuracy on the tasks after training on task t.

    Raises:
        ValueError: If there is no row or a row is too short.

    Example:
        >>> round(backward_transfer([[0.9], [0.5, 0.7]]), 6)
        -0.4

    References:
        Lopez-Paz, Ranzato. *Gradient Episodic Memory for Continual Learning*. NeurIPS 2017.
        https://arxiv.org/abs/1706.08840, Eq. 3.
    """
    rows = _rows("backward_transfer", matrix)
    last = len(rows) - 1
    return _mean([rows[last][i] - rows[i][i] for i in range(last)])


def forward_transfer(matrix: AccuracyRows, untrained: Sequence[float]) -> float:
    r"""Return how earlier tasks helped later ones, :math:`\frac{1}{T-1} \sum_{i>0} (R_{i-1,i} - b_i)`.

    NaN for a single task.

    Args:
        matrix: Row t: accuracy on the tasks after training on task t, at least up to task t + 1.
        untrained: Accuracy :math:`b_i` of the untrained network on every task.

    Raises:
        ValueError: If there is no row or a row is too short.

    Example:
        >>> round(forward_transfer([[0.9, 0.6], [0.5, 0.7]], untrained=[0.5, 0.5]), 6)
        0.1

    References:
        Lopez-Paz, Ranzato. *Gradient Episodic Memory for Continual Learning*. NeurIPS 2017.
        https://arxiv.org/abs/1706.08840, Eq. 4.
    """
    rows = _rows("forward_transfer", matrix)
    if len(untrained) < len(rows):
        raise ValueError(f"forward_transfer: untrained must have {len(rows)} accuracies, got {len(untrained)}.")
    for t, row in enumerate(rows[:-1]):
        if len(row) < t + 2:
            raise ValueError(
                f"forward_transfer: row {t} of matrix must reach task {t + 1}, got {len(row)} accuracies; evaluate the "
                "next task too before it is trained."
            )
    return _mean([rows[i - 1][i] - untrained[i] for i in range(1, len(rows))])


def _rows(name: str, matrix: AccuracyRows) -> list[list[float]]:
    rows = [[float(value) for value in row] for row in matrix]
    if not rows:
        raise ValueError(f"{name}: matrix must have at least one row, got none.")
    for t, row in enumerate(rows):
        if len(row) < t + 1:
            raise ValueError(f"{name}: row {t} of matrix must have at least {t + 1} accuracies, got {len(row)}.")
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
