"""The multi-task performance Δm."""

from __future__ import annotations

from collections.abc import Mapping


def delta_m(
    metrics: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, Mapping[str, float]],
    higher_is_better: Mapping[str, Mapping[str, bool]],
) -> float | None:
    r"""Return by how many percent the tasks do better on average than their single-task models.

    .. math:: \Delta_m = \frac{100}{K} \sum_{k} \frac{1}{n_k} \sum_{i} (-1)^{l_{ki}} \frac{M_{ki} - B_{ki}}{|B_{ki}|}

    with :math:`M_{ki}` the i-th metric of task k, :math:`B_{ki}` its single-task value, :math:`n_k` the number of
    metrics that have one, and :math:`l_{ki} = 1` where lower is better. Positive means better than single-task models.

    Args:
        metrics: Task -> metric -> value.
        baselines: The same of single-task models. What is missing, or is zero, is left out of the mean.
        higher_is_better: Task -> metric -> direction.

    Returns:
        Percent, or None when no metric has a baseline.

    Note:
        Several papers print the opposite sign (Navon et al., ICML 2022) or average over all metrics at once; this is
        the sign and, for one metric a task, the average of Maninis et al., and the two-level average of LibMTL.

    Example:
        >>> delta_m({"seg": {"miou": 0.55}, "depth": {"rmse": 0.9}}, {"seg": {"miou": 0.5}, "depth": {"rmse": 1.0}},
        ...         {"seg": {"miou": True}, "depth": {"rmse": False}})
        10.0

    References:
        Maninis, Radosavovic, Kokkinos. *Attentive Single-Tasking of Multiple Tasks*. CVPR 2019, Eq. 5.
        https://arxiv.org/abs/1904.08918
    """
    gains = []
    for task, values in metrics.items():
        relative = []
        for metric, value in values.items():
            baseline = baselines.get(task, {}).get(metric)
            if baseline:
                sign = 1.0 if higher_is_better[task][metric] else -1.0
                relative.append(sign * (value - baseline) / abs(baseline))
        if relative:
            gains.append(sum(relative) / len(relative))
    return round(100.0 * sum(gains) / len(gains), 10) if gains else None
