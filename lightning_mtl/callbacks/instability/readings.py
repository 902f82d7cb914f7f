"""Bring measurements from the device to the host, and together from all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_mtl.callbacks.instability.probe import ForwardProbe
from lightning_mtl.callbacks.instability.statistics import ParameterStatistics, root_mean_square

Sums = dict[str, tuple[float, float]]


@dataclass
class Readings:
    """Numbers of one or several processes.

    Args:
        losses: (step, loss), steps in order.
        first_nonfinite: Step -> block whose output was the first that was not finite.
        attention: Module -> largest logit and mean entropy.
        log_z: Output -> mean log Z.
        sizes: ``activations``, ``gradients``, ``parameters``, ``updates`` -> block -> root mean square.
        epsilons: Block -> Adam's epsilon.
        entropy_sums: Module -> sum of entropies and number of queries.
        log_z_sums: Output -> sum of log Z and number of softmaxes.
        size_sums: As ``sizes``, with sum of squares and count.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    first_nonfinite: dict[int, str] = field(default_factory=dict)
    attention: dict[str, tuple[float, float]] = field(default_factory=dict)
    log_z: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)
    epsilons: dict[str, float] = field(default_factory=dict)
    entropy_sums: Sums = field(default_factory=dict)
    log_z_sums: Sums = field(default_factory=dict)
    size_sums: dict[str, Sums] = field(default_factory=dict)


def collect(
    losses: Sequence[tuple[int, Tensor]],
    finite: Sequence[tuple[int, list[str], Tensor]],
    probe: ForwardProbe | None,
    sizes: ParameterStatistics | None,
) -> Readings:
    """Read what one process has measured.

    Args:
        losses: (step, loss) of every batch since the last time.
        finite: (step, names, flags) of the blocks' outputs, in the order in which they ran.
        probe: What the forward passes of a measured step showed, None outside of one.
        sizes: Gradients, parameters and updates of a measured step, None outside of one.
    """
    values = _read([loss for _, loss in losses])
    readings = Readings(losses=[(step, value) for (step, _), value in zip(losses, values, strict=True)])
    flags = _read([flag for _, _, of_step in finite for flag in of_step])
    position = 0
    for step, names, _ in finite:
        for name, flag in zip(names, flags[position : position + len(names)], strict=True):
            if not flag:
                readings.first_nonfinite.setdefault(step, name)
        position += len(names)
    if probe is not None:
        calls = [(name, found) for name, several in probe.attentions.items() for found in several]
        numbers = _read([t for _, found in calls for t in (found.max_logit, found.entropy, found.queries)])
        for i, (name, _) in enumerate(calls):
            largest, entropy, queries = numbers[3 * i : 3 * i + 3]
            before = readings.attention.get(name, (0.0, 0.0))[0]
            readings.attention[name] = (_largest(before, largest), 0.0)
            _add(readings.entropy_sums, name, entropy, queries)
        outputs = [(name, pair) for name, several in probe.log_zs.items() for pair in several]
        numbers = _read([tensor for _, pair in outputs for tensor in pair])
        for i, (name, _) in enumerate(outputs):
            _add(readings.log_z_sums, name, numbers[2 * i], numbers[2 * i + 1])
        squares = [(name, *pair) for name, several in probe.mean_squares.items() for pair in several]
        for (name, _, count), total in zip(squares, _read([total for _, total, _ in squares]), strict=True):
            _add(readings.size_sums.setdefault("activations", {}), name, total, count)
    if sizes is not None:
        readings.epsilons = dict(sizes.epsilons)
        for quantity, found in sizes.sums.items():
            totals = _read([total for total, _ in found.values()])
            readings.size_sums[quantity] = {
                name: (total, count) for (name, (_, count)), total in zip(found.items(), totals, strict=True)
            }
    return readings


def merge(parts: Sequence[Readings]) -> Readings:
    """Join the readings of all processes, and of all batches of a step, and form the means.

    Largest logits are maxima; losses are means over the processes and the batches of a step, not finite if one is not.
    """
    joined = Readings()
    by_step: dict[int, list[float]] = {}
    for part in parts:
        for step, loss in part.losses:
            by_step.setdefault(step, []).append(loss)
        for step, name in part.first_nonfinite.items():
            joined.first_nonfinite.setdefault(step, name)
        for name, (largest, _) in part.attention.items():
            before = joined.attention.get(name, (0.0, 0.0))[0]
            joined.attention[name] = (_largest(before, largest), 0.0)
        for name, epsilon in part.epsilons.items():
            joined.epsilons[name] = max(epsilon, joined.epsilons.get(name, 0.0))
        for target, source in ((joined.entropy_sums, part.entropy_sums), (joined.log_z_sums, part.log_z_sums)):
            for name, (total, count) in source.items():
                _add(target, name, total, count)
        for quantity, sums in part.size_sums.items():
            for name, (total, count) in sums.items():
                _add(joined.size_sums.setdefault(quantity, {}), name, total, count)
    joined.losses = [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]
    joined.attention = {
        name: (largest, _mean(joined.entropy_sums[name])) for name, (largest, _) in joined.attention.items()
    }
    joined.log_z = {name: _mean(pair) for name, pair in joined.log_z_sums.items() if pair[1]}
    joined.sizes = {
        quantity: {name: root_mean_square(*pair) for name, pair in sums.items()}
        for quantity, sums in joined.size_sums.items()
    }
    return joined


def _read(values: Sequence[Tensor]) -> list[float]:
    """Bring scalars to the host in one transfer."""
    if not values:
        return []
    device = values[0].device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    numbers: list[float] = torch.stack([value.detach().to(device, dtype) for value in values]).tolist()
    return numbers


def _add(sums: Sums, name: str, total: float, count: float) -> None:
    before = sums.get(name, (0.0, 0.0))
    sums[name] = (before[0] + total, before[1] + count)


def _mean(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1] if pair[1] else float("nan")


def _largest(first: float, second: float) -> float:
    """Return the larger number, NaN if one is NaN."""
    return first if first != first or first >= second else second
