"""How often every task is drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor


def _normalized(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def _by_size(lengths: Mapping[str, int], exponent: float) -> dict[str, float]:
    longest = max(lengths.values())
    return _normalized({task: (length / longest) ** exponent for task, length in lengths.items()})


def check_tasks(owner: str, argument: str, given: Iterable[str], tasks: Iterable[str]) -> None:
    """Raise a ValueError unless an argument names exactly the tasks."""
    if set(given) != set(tasks):
        raise ValueError(f"{owner}: {argument} must name the tasks {list(tasks)}, got {list(given)}.")


class TaskSampling(ABC):
    """How often every task is drawn by a :class:`TaskSampler`.

    A policy turns the sizes of the tasks' data sets and the epoch into one probability a task, which holds for the
    whole epoch. What it learns from validations goes into its ``state_dict``, which is part of the loader's.
    """

    @abstractmethod
    def probabilities(self, lengths: Mapping[str, int], epoch: int) -> dict[str, float]:
        """Return the probability of every task in this epoch; they are positive and sum to one.

        Args:
            lengths: Task -> number of samples.
            epoch: Number of the epoch, from 0.
        """

    def draw(self, probabilities: Tensor, count: int, start: int, generator: Generator) -> Tensor:
        """Return the numbers of the tasks of ``count`` draws; independent draws unless overridden.

        Args:
            probabilities: One a task, ``(K,)`` float64.
            count: How many draws to make.
            start: How many draws were made before these, in all epochs.
            generator: Where randomness comes from; the same on all processes.

        Shape:
            - returns ``(count,)`` int64 in 0 .. K - 1.
        """
        return torch.multinomial(probabilities, count, replacement=True, generator=generator)

    def observe(self, scores: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: B027
        """Be told the scores of a validation, task -> metric -> value; most policies do not care.

        :class:`~lightning_mtl.MultiTaskModule` calls it after every validation for the policy of its Trainer's
        training loader. A module of one's own does so in ``on_validation_epoch_end``, with values that are the same
        on all processes.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned from validations, as plain data."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what was learned."""


class ProportionalSampling(TaskSampling):
    r"""Draw every task in proportion to its number of samples: :math:`p_k \propto n_k`.

    Example:
        >>> ProportionalSampling().probabilities({"large": 300, "small": 100}, epoch=0)
        {'large': 0.75, 'small': 0.25}
    """

    def probabilities(self, lengths: Mapping[str, int], epoch: int) -> dict[str, float]:
        """Return the tasks' shares of all samples."""
        return _by_size(lengths, 1.0)


class UniformSampling(TaskSampling):
    """Draw every task equally often.

    Example:
        >>> UniformSampling().probabilities({"large": 300, "small": 100}, epoch=0)
        {'large': 0.5, 'small': 0.5}
    """

    def probabilities(self, lengths: Mapping[str, int], epoch: int) -> dict[str, float]:
        """Return one over the number of tasks."""
        return _by_size(lengths, 0.0)


class TemperatureSampling(TaskSampling):
    r"""Draw tasks by a power of their sizes: :math:`p_k \propto n_k^{1/T}`.

    Args:
        temperature: 1 is proportional, 2 the square root, infinity uniform. At least 1.

    Raises:
        ValueError: If ``temperature`` is below 1.

    Example:
        >>> TemperatureSampling(2.0).probabilities({"large": 900, "small": 100}, epoch=0)
        {'large': 0.75, 'small': 0.25}

    References:
        Arivazhagan et al. *Massively Multilingual Neural Machine Translation in the Wild: Findings and Challenges*.
        2019. https://arxiv.org/abs/1907.05019
    """

    def __init__(self, temperature: float = 2.0) -> None:
        if not temperature >= 1:
            raise ValueError(f"TemperatureSampling: temperature must be at least 1, got {temperature}.")
        self.temperature = temperature

    def probabilities(self, lengths: Mapping[str, int], epoch: int) -> dict[str, float]:
        """Return the normalised powers of the sizes."""
        return _by_size(lengths, 1 / self.temperature)


class AnnealedSampling(TaskSampling):
    r"""Begin in proportion to the sizes and go towards equal shares: :math:`p_k \propto n_k^{\alpha_e}`.

    :math:`\alpha` goes in equal steps from ``start`` in the first epoch to ``end`` in the last, and stays there.

    Args:
        epochs: Number of epochs of the training.
        start: First exponent.
        end: Last exponent.

    Raises:
        ValueError: If a number is out of range.

    Note:
        It follows the epochs that Lightning announces; in a loop by hand, call ``loader.sampler.set_epoch``.

    Example:
        >>> sampling = AnnealedSampling(epochs=3)
        >>> [round(sampling.probabilities({"large": 900, "small": 100}, epoch)["large"], 2) for epoch in range(4)]
        [0.9, 0.79, 0.61, 0.61]

    References:
        Stickland, Murray. *BERT and PALs: Projected Attention Layers for Efficient Adaptation in Multi-Task Learning*.
        ICML 2019. https://arxiv.org/abs/1902.02671
    """

    def __init__(self, epochs: int, start: float = 1.0, end: float = 0.2) -> None:
        if epochs < 1:
            raise ValueError(f"AnnealedSampling: epochs must be at least 1, got {epochs}.")
        for name, value in (("start", start), ("end", end)):
            if not 0 <= value < math.inf:
                raise ValueError(f"AnnealedSampling: {name} must be finite and not negative, got {value}.")
        self.epochs = epochs
        self.start = start
        self.end = end

    def probabilities(self, lengths: Mapping[str, int], epoch: int) -> dict[str, float]:
        """Return the normalised powers of the sizes, with the exponent of this epoch."""
        done = min(epoch / max(self.epochs - 1, 1), 1.0)
        return _by_size(lengths, self.start + (self.end - self.start) * done)


class FixedRatios(TaskSampling):
    """Draw tasks by given ratios.

    Args:
        ratios: Task -> ratio, positive; they are divided by their sum.

    Raises:
        ValueError: If a ratio is not positive and finite, or, at the first draw, if the tasks are others.

    Example:
        >>> FixedRatios({"a": 3, "b": 1}).probabilities({"a": 10, "b": 10}, epoch=0)
        {'a': 0.75, 'b': 0.25}
    """

    def __init__(self, ratios: dict[str, float]) -> None:
        for task, ratio in ratios.items():
            if not 0 < ratio < math.inf:
                raise ValueError(
                    f"FixedRatios: ratios must be positive and finite, got {ratio} for task {task!r}; leave a task "
                    "that is not to be trained out of the data."
                )
        self.ratios = dict(ratios)

    def probabilities(self, lengths: Mapping[str, int], epoch: int) -> dict[str, float]:
        """Return the given ratios, in the order of the tasks."""
        check_tasks("FixedRatios", "ratios", self.ratios, lengths)
        return _normalized({task: self.ratios[task] for task in lengths})


class RoundRobinSampling(UniformSampling):
    """Draw the tasks in turn, without chance; the turn goes on from epoch to epoch.

    Its probabilities are those of a step chosen at random.
    """

    def draw(self, probabilities: Tensor, count: int, start: int, generator: Generator) -> Tensor:
        """Return consecutive tasks."""
        return (start + torch.arange(count)) % len(probabilities)


class DynamicSampling(TaskSampling):
    r"""Draw those tasks more often that are further behind a model trained on that task alone.

    .. math:: p_k \propto \max(r_k - s_k, f)

    with the single-task model's score :math:`r_k`, the score :math:`s_k` of the last validation, and a floor :math:`f`
    that keeps every task in the training. With several validations in an epoch the last one counts; the probabilities
    change at the next epoch, and are those of ``initial`` until there was a validation of all tasks.

    Args:
        references: Task -> score of a model trained on this task alone.
        metric: Name of the metric as in the log (``val/<task>/<metric>``), the same for all tasks or one a task. All
            should have the same range.
        higher_is_better: Whether a higher score is better, for all of them.
        floor: Smallest gap that is reckoned with, in the units of the metric; positive.
        initial: Policy until the first validation; proportional by default.

    Raises:
        ValueError: If ``floor`` is not positive; if the tasks are others than those of ``references`` or ``metric``;
            if a validation lacks the metric of a task.

    Note:
        The floor is ours. A score that is not finite counts as the widest gap among the others. A checkpoint that is
        written after the last step of an epoch but before its validation does not hold that validation, which Lightning
        does not make up for when it resumes; save at the validation or at the end of the epoch.

    Example:
        >>> sampling = DynamicSampling({"easy": 0.9, "hard": 0.8}, metric="accuracy")
        >>> sampling.observe({"easy": {"accuracy": 0.8}, "hard": {"accuracy": 0.5}})
        >>> {task: round(p, 2) for task, p in sampling.probabilities({"easy": 50, "hard": 50}, epoch=1).items()}
        {'easy': 0.25, 'hard': 0.75}

    References:
        Gottumukkala, Dua, Singh, Gardner. *Dynamic Sampling Strategies for Multi-Task Reading Comprehension*. ACL 2020.
        https://aclanthology.org/2020.acl-main.86
    """

    def __init__(
        self,
        references: dict[str, float],
        metric: str | dict[str, str],
        higher_is_better: bool = True,
        floor: float = 0.01,
        initial: TaskSampling | None = None,
    ) -> None:
        if not floor > 0:
            raise ValueError(
                f"DynamicSampling: floor must be positive, got {floor}; at 0 a task could be lost for good."
            )
        if isinstance(metric, Mapping):
            check_tasks("DynamicSampling", "metric", metric, references)
        self.references = dict(references)
        self.metrics = dict(metric) if isinstance(metric, Mapping) else dict.fromkeys(references, metric)
        self.higher_is_better = higher_is_better
        self.floor = floor
        self.initial = ProportionalSampling() if initial is None else initial
        self._gaps: dict[str, float] = {}

    def probabilities(self, lengths: Mapping[str, int], epoch: int) -> dict[str, float]:
        """Return the normalised gaps of the last validation."""
        check_tasks("DynamicSampling", "references", self.references, lengths)
        if set(self._gaps) != set(lengths):
            return self.initial.probabilities(lengths, epoch)
        widest = max((gap for gap in self._gaps.values() if math.isfinite(gap)), default=self.floor)
        gaps = {task: self._gaps[task] for task in lengths}
        return _normalized({k: max(gap if math.isfinite(gap) else widest, self.floor) for k, gap in gaps.items()})

    def observe(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the gaps of the tasks that were validated."""
        sign = 1.0 if self.higher_is_better else -1.0
        for task, reference in self.references.items():
            if task not in scores:
                continue
            if self.metrics[task] not in scores[task]:
                raise ValueError(
                    f"DynamicSampling: metric must name a metric of task {task!r} ({sorted(scores[task])}), got "
                    f"{self.metrics[task]!r}."
                )
            self._gaps[task] = sign * (reference - float(scores[task][self.metrics[task]]))

    def state_dict(self) -> dict[str, Any]:
        """Return the gaps of the last validation."""
        return {"gaps": dict(self._gaps)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back the gaps of the last validation."""
        self._gaps = dict(state_dict["gaps"])
