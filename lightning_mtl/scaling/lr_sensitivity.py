"""How much the loss suffers when the learning rate is not the best one."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The grid of the paper."""

_KEYS = ("scale", "learning_rate", "seed", "loss")


def lr_sensitivity(losses: Sequence[float | None], initial_loss: float) -> float:
    r"""Return the mean excess of the final loss over the best one, over a grid of learning rates.

    .. math:: \frac{1}{|G|} \sum_{\eta \in G} \left[\min(\ell(\eta), \ell_0) - \ell^*\right], \qquad
        \ell^* = \min_{\eta \in G} \min(\ell(\eta), \ell_0)

    with final losses :math:`\ell` on the grid :math:`G` and the loss at initialisation :math:`\ell_0`, which also
    stands in for runs that diverged.

    Args:
        losses: Final loss at every learning rate; None, NaN or infinity for a run that diverged.
        initial_loss: Loss before training.

    Raises:
        ValueError: If there are fewer than two learning rates, or ``initial_loss`` is not finite.

    Note:
        It is zero when every run stays at chance, and depends on the grid: look at the curve too, and centre the grid
        on the optimum when that moves.

    Example:
        >>> round(lr_sensitivity([1.0, 1.5, None], initial_loss=4.0), 4)
        1.1667

    References:
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 2.2.
    """
    if len(losses) < 2:
        raise ValueError(f"lr_sensitivity: losses must hold at least 2 learning rates, got {len(losses)}.")
    if not math.isfinite(initial_loss):
        raise ValueError(f"lr_sensitivity: initial_loss must be finite, got {initial_loss}.")
    capped = [initial_loss if loss is None or not math.isfinite(loss) else min(loss, initial_loss) for loss in losses]
    best = min(capped)
    return sum(loss - best for loss in capped) / len(capped)


@dataclass(frozen=True)
class LRSensitivityResult:
    """Final losses of a sweep and what follows from them.

    Args:
        rows: One mapping per run with ``scale``, ``learning_rate``, ``seed``, ``loss`` and whatever else the training
            function returned; NaN is the loss of a run that diverged.
        initial_loss: Loss before training, used where no row of a scale has an ``initial_loss`` of its own.
    """

    rows: tuple[Mapping[str, Any], ...]
    initial_loss: float | None

    @property
    def scales(self) -> list[str]:
        """The scales, in the order of the sweep."""
        return list(dict.fromkeys(str(row["scale"]) for row in self.rows))

    def curve(self, scale: str, seed: int | None = None) -> dict[float, float]:
        """Return learning rate -> final loss, the mean over seeds, diverged runs at the initial loss.

        Args:
            scale: Which scale.
            seed: One seed alone; None averages over seeds.

        Raises:
            ValueError: If the scale or the seed is unknown.
        """
        losses: dict[float, list[float]] = {}
        for row in self.rows:
            if str(row["scale"]) == str(scale) and seed in (None, row["seed"]):
                start = self._initial(row)
                loss = float(row["loss"])
                losses.setdefault(row["learning_rate"], []).append(min(loss, start) if math.isfinite(loss) else start)
        if not losses:
            raise ValueError(f"LRSensitivityResult: no run of scale {scale!r} and seed {seed}; known: {self.scales}.")
        return {rate: sum(values) / len(values) for rate, values in sorted(losses.items())}

    def sensitivity(self, scale: str) -> float:
        """Return the LR sensitivity of a scale, the mean over seeds.

        Args:
            scale: Which scale.
        """
        rows = [row for row in self.rows if str(row["scale"]) == str(scale)]
        values = []
        for seed in dict.fromkeys(row["seed"] for row in rows):
            of_seed = [row for row in rows if row["seed"] == seed]
            start = sum(self._initial(row) for row in of_seed) / len(of_seed)
            values.append(lr_sensitivity([row["loss"] for row in of_seed], start))
        if not values:
            raise ValueError(f"LRSensitivityResult: no run of scale {scale!r}; known: {self.scales}.")
        return sum(values) / len(values)

    def best_learning_rate(self, scale: str) -> float:
        """Return the learning rate with the lowest mean loss.

        Args:
            scale: Which scale.
        """
        curve = self.curve(scale)
        return min(curve, key=curve.__getitem__)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per scale: sensitivity, best learning rate, its loss, and how many runs diverged."""
        table = []
        for scale in self.scales:
            rows = [row for row in self.rows if str(row["scale"]) == scale]
            best = self.best_learning_rate(scale)
            table.append(
                {
                    "scale": scale,
                    "lr_sensitivity": self.sensitivity(scale),
                    "best_learning_rate": best,
                    "best_loss": self.curve(scale)[best],
                    "diverged": sum(not math.isfinite(row["loss"]) or row["loss"] > self._initial(row) for row in rows),
                    "runs": len(rows),
                }
            )
        return table

    def plot(self) -> Figure:
        """Draw the loss over the learning rate for every scale, and the sensitivity of every scale.

        The second axis is the number of parameters if the rows have ``num_params`` and it at least doubles over the
        scales; otherwise there is a bar for each scale.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for scale in self.scales:
            curve = self.curve(scale)
            left.plot(list(curve), list(curve.values()), marker="o", label=scale)
        left.set(xscale="log", xlabel="learning rate", ylabel="final loss")
        left.legend(title="scale")
        sizes = {str(row["scale"]): float(row["num_params"]) for row in self.rows if "num_params" in row}
        values = [self.sensitivity(scale) for scale in self.scales]
        right.set_ylabel("LR sensitivity")
        if len(sizes) == len(self.scales) and max(sizes.values()) >= 2 * min(sizes.values()):
            right.plot([sizes[scale] for scale in self.scales], values, marker="o")
            right.set(xscale="log", xlabel="parameters")
        else:
            colours = [line.get_color() for line in left.get_lines()]
            right.bar_label(right.bar(self.scales, values, width=0.6, color=colours), fmt="%.2f")
            right.set_xlabel("scale")
            right.margins(y=0.1)
        return figure

    def _initial(self, row: Mapping[str, Any]) -> float:
        value = row.get("initial_loss")
        if value is None:  # a run that broke off: take it from its neighbours
            same = [other for other in self.rows if other["scale"] == row["scale"]]
            of_scale = [other["initial_loss"] for other in same if "initial_loss" in other]
            value = sum(of_scale) / len(of_scale) if of_scale else self.initial_loss
        if value is None:
            raise ValueError(
                "LRSensitivity: initial_loss must be given, or be returned by the training function; it stands in for "
                "runs that diverged."
            )
        return float(value)


class LRSensitivity:
    r"""Train at every scale, learning rate and seed, and report the learning-rate sensitivity of every scale.

    A plain loop over a function that trains one model. Every finished run is written to a CSV file at once; started
    again, the sweep goes on after the last one written.

    Args:
        train: ``train(scale, learning_rate, seed)`` returns the final loss, or a mapping with ``loss`` and other
            numbers to keep, such as ``num_params``, ``initial_loss`` or ``max_attention_logit``. NaN or a
            :class:`FloatingPointError` means that the run diverged.
        scales: What identifies a model size to ``train``: names, widths, depths.
        learning_rates: The grid, at least two.
        seeds: Seeds of the repetitions.
        initial_loss: Loss before training; None if ``train`` returns ``initial_loss``.
        path: CSV file of the runs; None keeps them in memory only.

    Raises:
        ValueError: If the grid or the file does not fit.

    Example:
        >>> sweep = LRSensitivity(lambda scale, lr, seed: 1 + scale * lr, scales=[1, 2], learning_rates=[0.1, 0.3],
        ...                       initial_loss=3.0)
        >>> [(row["scale"], round(row["lr_sensitivity"], 3)) for row in sweep.run().table()]
        [('1', 0.1), ('2', 0.2)]

    References:
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 2.2.
    """

    def __init__(
        self,
        train: Callable[[Any, float, int], float | Mapping[str, float]],
        scales: Sequence[Any],
        learning_rates: Sequence[float] = LEARNING_RATES,
        seeds: Sequence[int] = (0,),
        initial_loss: float | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        if len(set(learning_rates)) < 2 or min(learning_rates) <= 0:
            raise ValueError(
                f"LRSensitivity: learning_rates must hold at least 2 different positive values, got {learning_rates}."
            )
        for argument, values in (("scales", scales), ("seeds", seeds)):
            if not values or len({str(value) for value in values}) < len(values):
                raise ValueError(f"LRSensitivity: {argument} must hold different values, at least one, got {values}.")
        self.train = train
        self.scales = list(scales)
        self.learning_rates = sorted(set(learning_rates))
        self.seeds = list(seeds)
        self.initial_loss = initial_loss
        self.path = None if path is None else Path(path)

    def run(self) -> LRSensitivityResult:
        """Train what is missing and return all runs of this sweep."""
        done = self._read()
        rows = []
        for scale in self.scales:
            for rate in self.learning_rates:
                for seed in self.seeds:
                    key = (str(scale), rate, seed)
                    if key not in done:
                        done[key] = self._train(scale, rate, seed)
                        self._write(list(done.values()))
                    rows.append(done[key])
        return LRSensitivityResult(tuple(rows), self.initial_loss)

    def _train(self, scale: Any, rate: float, seed: int) -> dict[str, Any]:
        row: dict[str, Any] = {"scale": str(scale), "learning_rate": rate, "seed": seed}
        try:
            found = self.train(scale, rate, seed)
        except FloatingPointError:
            found = math.nan
        if not isinstance(found, Mapping):
            return {**row, "loss": float(found)}
        if "loss" not in found:
            raise ValueError(f"LRSensitivity: train must return a mapping with 'loss', got {sorted(found)}.")
        return {**row, **{name: float(value) for name, value in found.items()}}

    def _read(self) -> dict[tuple[str, float, int], dict[str, Any]]:
        if self.path is None or not self.path.exists():
            return {}
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in _KEYS if name not in (reader.fieldnames or ())]:
                raise ValueError(
                    f"LRSensitivity: {self.path} must have the columns {missing}; it was not written by a sweep, "
                    "choose another path."
                )
            done = {}
            for line in reader:
                row: dict[str, Any] = {"scale": line["scale"], "seed": int(line["seed"])}
                row |= {name: float(line[name]) for name in line if name not in row and line[name] != ""}
                done[row["scale"], row["learning_rate"], row["seed"]] = row
        return done

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file at once, so that a killed sweep leaves a whole one."""
        if self.path is None:
            return
        columns = list(_KEYS) + sorted({name for row in rows for name in row} - set(_KEYS))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)
