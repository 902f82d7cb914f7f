"""Robust fits of scaling laws from many starting points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Law = Callable[[Array, Array], Array]
"""From parameters ``(P,)`` and inputs ``(N,)`` or ``(D, N)`` to predictions ``(N,)``."""

_SMALLEST_SCALE = 1e-6
_FIRST_SCALE = 0.05
_SCALE_ROUNDS = 4
_COARSE = 1e-7  # tolerance of the fits from the starting points, of which only the best is refined
_MAD_TO_STD = 1.4826


@dataclass(frozen=True)
class LawFit:
    """A law with fitted parameters.

    Args:
        law: The law.
        names: Names of its parameters.
        values: Their fitted values.
        bounds: Lower and upper bound of every parameter.
        inputs: Inputs of the law, ``(N,)`` or ``(D, N)``.
        observed: What was measured, ``(N,)``.
        residual: What is minimised: differences of logarithms, or plain differences.
        scale: Residual from which on a point counts as an outlier.
        cost: Robust cost at the optimum.
        agreement: Share of the starting points that led to this optimum.
    """

    law: Law
    names: tuple[str, ...]
    values: tuple[float, ...]
    bounds: tuple[tuple[float, float], ...]
    inputs: Array
    observed: Array
    residual: Literal["log", "difference"]
    scale: float
    cost: float
    agreement: float

    @property
    def parameters(self) -> dict[str, float]:
        """Name -> value."""
        return dict(zip(self.names, self.values, strict=True))

    @property
    def residuals(self) -> Array:
        """Observed minus predicted, of logarithms or plain, ``(N,)``."""
        return _residuals(self.residual, self.predict(self.inputs), self.observed)

    @property
    def r2(self) -> float:
        """Share of the variance that the law explains, of logarithms or plain."""
        observed = np.log(self.observed) if self.residual == "log" else self.observed
        spread = float(np.sum((observed - observed.mean()) ** 2))
        return 1.0 - float(np.sum(self.residuals**2)) / spread if spread > 0 else math.nan

    def predict(self, inputs: ArrayLike) -> Array:
        """Return the law's value.

        Args:
            inputs: ``(N,)`` or ``(D, N)``.
        """
        return self.law(np.asarray(self.values), np.asarray(inputs, dtype=np.float64))

    def resample(self, num_resamples: int = 200, seed: int = 0) -> list[LawFit]:
        r"""Fit the law anew to data with shuffled residuals.

        Every residual is first divided by :math:`\sqrt{1 - h}` with its leverage :math:`h`, because the fit comes
        closer to the points that determine it most.

        Args:
            num_resamples: Number of fits.
            seed: Seed of the draws.

        Raises:
            ValueError: If there are not more points than parameters.
        """
        count, free = len(self.observed), len(self.names)
        if count <= free:
            raise ValueError(
                f"LawFit: intervals need more points than the {free} parameters {list(self.names)}, got {count}; add "
                "runs, or fix a parameter."
            )
        generator = np.random.default_rng(seed)
        residuals = self.residuals / np.sqrt(np.clip(1 - self._leverage(), 0.05, 1.0))
        residuals = residuals - residuals.mean()
        predicted = self.predict(self.inputs)
        fits = []
        for _ in range(num_resamples):
            drawn = generator.choice(residuals, size=count)
            observed = predicted * np.exp(drawn) if self.residual == "log" else predicted + drawn
            found = _least_squares(self.law, self.values, self.bounds, self.inputs, observed, self.residual, self.scale)
            values = tuple(float(value) for value in found.x)
            fits.append(dataclasses.replace(self, values=values, observed=observed, cost=float(found.cost)))
        return fits

    def _leverage(self) -> Array:
        """Return by how much every fitted value follows its own measurement, in [0, 1]."""
        columns = []
        for i, value in enumerate(self.values):
            step = 1e-6 * max(abs(value), 1e-3)
            shifted = [np.array(self.values) for _ in range(2)]
            shifted[0][i], shifted[1][i] = value + step, value - step
            up, down = (_residuals(self.residual, self.law(point, self.inputs), self.observed) for point in shifted)
            columns.append((up - down) / (2 * step))
        basis, sizes, _ = np.linalg.svd(np.stack(columns, axis=1), full_matrices=False)
        return np.asarray((basis[:, sizes > 1e-10 * sizes.max()] ** 2).sum(axis=1))

    def confidence(
        self, level: float = 0.95, num_resamples: int = 200, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Return a bootstrap interval of every parameter.

        Args:
            level: Probability that an interval should cover the truth, in (0, 1).
            num_resamples: Number of refits.
            seed: Seed of the draws.
        """
        values = np.array([fit.values for fit in self.resample(num_resamples, seed)])
        low, high = self._widened(np.asarray(self.values), values, level)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.names)}

    def interval(
        self, inputs: ArrayLike, level: float = 0.95, num_resamples: int = 200, seed: int = 0
    ) -> tuple[Array, Array]:
        """Return a bootstrap interval of the law's value, without the noise of a new measurement.

        Args:
            inputs: ``(N,)`` or ``(D, N)``.
            level: Probability that an interval should cover the truth, in (0, 1).
            num_resamples: Number of refits.
            seed: Seed of the draws.
        """
        values = np.array([fit.predict(inputs) for fit in self.resample(num_resamples, seed)])
        return self._widened(self.predict(inputs), values, level)

    def _widened(self, estimate: Array, resampled: Array, level: float) -> tuple[Array, Array]:
        """Return bootstrap quantiles, widened by Student's over the normal quantile for the small number of points."""
        from scipy.stats import norm, t

        if not 0 < level < 1:
            raise ValueError(f"LawFit: level must be in (0, 1), got {level}.")
        tails = ((1 - level) / 2, (1 + level) / 2)
        wider = float(t.ppf(tails[1], len(self.observed) - len(self.names)) / norm.ppf(tails[1]))
        low, high = np.quantile(resampled, tails, axis=0)
        return estimate + wider * (low - estimate), estimate + wider * (high - estimate)


def fit_law(
    law: Law,
    inputs: ArrayLike,
    observed: ArrayLike,
    starts: Sequence[Mapping[str, float]],
    bounds: Mapping[str, tuple[float, float]],
    residual: Literal["log", "difference"] = "log",
    scale: float | None = None,
) -> LawFit:
    r"""Fit any law by robust least squares from several starting points, and keep the best optimum.

    .. math:: \min_\theta \sum_i \rho\left(\frac{r_i(\theta)}{s}\right), \qquad \rho(u) = 2 (\sqrt{1 + u^2} - 1)

    with residuals :math:`r_i` and their scale :math:`s`: quadratic for small residuals, linear for outliers.

    Args:
        law: From parameters, in the order of ``starts[0]``, and inputs to predictions.
        inputs: ``(N,)`` or ``(D, N)``.
        observed: ``(N,)``, positive for logarithmic residuals.
        starts: Starting points, each parameter name -> value; clipped to the bounds.
        bounds: Parameter name -> lower and upper bound; unbounded where absent.
        residual: ``"log"`` compares logarithms, so that small and large values count alike; ``"difference"`` compares
            the values.
        scale: s; None estimates it from the median residual of a first fit, four times over.

    Raises:
        ValueError: If there are fewer points than parameters, a value is not finite, or no starting point leads to a
            finite cost.
        ModuleNotFoundError: If scipy is not installed.

    Example:
        >>> import numpy as np
        >>> x = np.array([1.0, 2.0, 4.0, 8.0])
        >>> fit = fit_law(lambda p, x: p[0] * x, x, 3 * x, [{"slope": 1.0}], {"slope": (0.0, 10.0)})
        >>> round(fit.parameters["slope"], 6)
        3.0
    """
    names = tuple(starts[0]) if starts else ()
    if not names:
        raise ValueError("fit_law: starts must hold at least one starting point with one parameter, got none.")
    x, y = np.asarray(inputs, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    _check_points("fit_law", x, y, len(names), residual)
    limits = tuple(bounds.get(name, (-math.inf, math.inf)) for name in names)
    low, high = np.array(limits).T
    first_scale = _FIRST_SCALE * (1.0 if residual == "log" else float(np.abs(y).mean()) or 1.0)
    found: list[Any] = []
    for start in starts:
        point = np.clip([start[name] for name in names], low, high)
        with np.errstate(all="ignore"):
            if np.isfinite(_residuals(residual, law(point, x), y)).all():
                found.append(_least_squares(law, point, limits, x, y, residual, scale or first_scale, _COARSE))
    if not found:
        raise ValueError(
            f"fit_law: none of the {len(starts)} starting points gives finite residuals; choose starting values at "
            "which the law is positive and finite."
        )
    best = min(found, key=lambda result: float(result.cost))
    close = sum(result.cost <= best.cost * (1 + 1e-3) + 1e-12 for result in found)
    used = scale or 0.0
    if scale is not None:
        best = _least_squares(law, best.x, limits, x, y, residual, used)
    else:
        smallest = _SMALLEST_SCALE * (first_scale / _FIRST_SCALE)
        for _ in range(_SCALE_ROUNDS):
            typical = float(np.median(np.abs(_residuals(residual, law(best.x, x), y))))
            spread = _MAD_TO_STD * typical * math.sqrt(len(y) / max(len(y) - len(names), 1))
            used = max(2 * spread, smallest)
            best = _least_squares(law, best.x, limits, x, y, residual, used)
    return LawFit(
        law=law,
        names=names,
        values=tuple(float(value) for value in best.x),
        bounds=limits,
        inputs=x,
        observed=y,
        residual=residual,
        scale=used,
        cost=float(best.cost),
        agreement=float(close) / len(found),
    )


@dataclass(frozen=True)
class PowerLaw:
    r"""A fitted power law :math:`y = o + c\,x^p`, made by :func:`fit_power_law`.

    Args:
        fit: The fit in normalised units.
        x_unit: Unit of x in that fit.
        y_unit: Unit of y in that fit.
        fixed_offset: The offset o where it was not fitted.
    """

    fit: LawFit
    x_unit: float
    y_unit: float
    fixed_offset: float | None

    @property
    def exponent(self) -> float:
        """The exponent p."""
        return self._read(self.fit)["exponent"]

    @property
    def coefficient(self) -> float:
        """The coefficient c, in the unit of y over the unit of x to the power p."""
        return self._read(self.fit)["coefficient"]

    @property
    def offset(self) -> float:
        """The offset o, the limit of a falling law."""
        return self._read(self.fit)["offset"]

    @property
    def r2(self) -> float:
        """Share of the variance that the law explains."""
        return self.fit.r2

    def _read(self, fit: LawFit) -> dict[str, float]:
        found = fit.parameters
        offset = self.fixed_offset if self.fixed_offset is not None else found["offset"] * self.y_unit
        coefficient = self.y_unit * math.exp(found["log_coefficient"] - found["exponent"] * math.log(self.x_unit))
        return {"coefficient": coefficient, "exponent": found["exponent"], "offset": offset}

    def predict(self, x: ArrayLike) -> Array:
        """Return the law's value at x."""
        return self.fit.predict(np.asarray(x, dtype=np.float64) / self.x_unit) * self.y_unit

    def confidence(
        self, level: float = 0.95, num_resamples: int = 200, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Return bootstrap intervals of ``coefficient``, ``exponent`` and ``offset``.

        Args:
            level: Probability that an interval should cover the truth, in (0, 1).
            num_resamples: Number of refits.
            seed: Seed of the draws.
        """
        rows = [list(self._read(fit).values()) for fit in self.fit.resample(num_resamples, seed)]
        found = self._read(self.fit)
        low, high = self.fit._widened(np.array(list(found.values())), np.array(rows), level)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(found)}

    def interval(
        self, x: ArrayLike, level: float = 0.95, num_resamples: int = 200, seed: int = 0
    ) -> tuple[Array, Array]:
        """Return a bootstrap interval of the law's value at x, without the noise of a new measurement."""
        inputs = np.asarray(x, dtype=np.float64) / self.x_unit
        low, high = self.fit.interval(inputs, level, num_resamples, seed)
        return low * self.y_unit, high * self.y_unit


def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    offset: Literal["fit"] | float = "fit",
    residual: Literal["log", "difference"] = "log",
    exponents: tuple[float, float] = (-5.0, 5.0),
) -> PowerLaw:
    r"""Fit :math:`y = o + c\,x^p` with positive c to positive measurements, robustly and from many starting points.

    x and y are brought to order one first, so that numbers of parameters or tokens need no care. A fitted offset lies
    between 0 and the smallest y, which is the irreducible part of a falling loss.

    Args:
        x: Scale: parameters, tokens, steps, learning rate; positive.
        y: Measurement, positive.
        offset: o if known, 0 for a pure power law, or ``"fit"``.
        residual: Whether logarithms or plain values are compared.
        exponents: Range of p.

    Raises:
        ValueError: If there are fewer points than parameters (3, or 2 with a given offset), a value is not positive, or
            the given offset is not below all of y.
        ModuleNotFoundError: If scipy is not installed.

    Example:
        >>> sizes = [1e6, 3e6, 1e7, 3e7, 1e8]
        >>> law = fit_power_law(sizes, [1.7 + 400 * n**-0.4 for n in sizes])
        >>> round(law.exponent, 4), round(law.offset, 4), round(float(law.predict(1e9)), 4)
        (-0.4, 1.7, 1.8005)

    References:
        Hoffmann et al. *Training Compute-Optimal Large Language Models*. NeurIPS 2022. https://arxiv.org/abs/2203.15556,
        App. D.2 (robust fit of logarithms from a grid of starting points).
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fixed = None if offset == "fit" else float(offset)
    _check_points("fit_power_law", xs, ys, 3 if fixed is None else 2, "log")
    if not (xs > 0).all():
        raise ValueError(f"fit_power_law: x must be positive, got {xs.min()}.")
    if fixed is not None and not fixed < ys.min():
        raise ValueError(f"fit_power_law: offset must be below the smallest y={ys.min()}, got {fixed}.")
    x_unit, y_unit = math.exp(float(np.log(xs).mean())), math.exp(float(np.log(ys).mean()))
    xs, ys = xs / x_unit, ys / y_unit
    smallest = float(ys.min())

    def law(values: Array, inputs: Array) -> Array:
        base = values[2] if fixed is None else fixed / y_unit
        return np.asarray(base + np.exp(values[0] + values[1] * np.log(inputs)))

    starts = []
    shares = (0.0, 0.3, 0.6, 0.8, 0.95, 0.99) if fixed is None else (fixed / y_unit / smallest,)
    for share in shares:
        slope, intercept = np.polyfit(np.log(xs), np.log(ys - share * smallest * (1 - 1e-9)), 1)
        for exponent in (slope, 0.5 * slope, 2 * slope):
            start = {"log_coefficient": float(intercept), "exponent": float(exponent)}
            starts.append(start if fixed is not None else {**start, "offset": share * smallest})
    bounds = {"exponent": exponents, "log_coefficient": (-50.0, 50.0), "offset": (0.0, smallest)}
    return PowerLaw(fit_law(law, xs, ys, starts, bounds, residual), x_unit, y_unit, fixed)


def _residuals(kind: Literal["log", "difference"], predicted: Array, observed: Array) -> Array:
    if kind == "difference":
        return observed - predicted
    return np.asarray(np.log(observed) - np.log(np.maximum(predicted, np.finfo(np.float64).tiny)))


def _least_squares(
    law: Law,
    start: ArrayLike,
    bounds: Sequence[tuple[float, float]],
    inputs: Array,
    observed: Array,
    residual: Literal["log", "difference"],
    scale: float,
    tolerance: float = 1e-12,
) -> Any:
    try:
        from scipy.optimize import least_squares
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Fitting scaling laws needs `pip install lightning-mtl[scaling]`.") from error
    return least_squares(
        lambda values: _residuals(residual, law(values, inputs), observed),
        np.asarray(start, dtype=np.float64),
        bounds=tuple(np.array(bounds, dtype=np.float64).T),
        loss="soft_l1",
        f_scale=scale,
        x_scale="jac",
        ftol=tolerance,
        xtol=tolerance,
        gtol=tolerance,
        max_nfev=100,
    )


def _check_points(owner: str, x: Array, y: Array, free: int, residual: str) -> None:
    if y.ndim != 1 or x.shape[-1:] != y.shape:
        raise ValueError(f"{owner}: inputs and measurements must have one length, got {x.shape} and {y.shape}.")
    if len(y) < free:
        raise ValueError(f"{owner}: needs at least {free} points for {free} parameters, got {len(y)}; add runs.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"{owner}: inputs and measurements must be finite; leave out the runs that diverged.")
    if residual == "log" and not (y > 0).all():
        raise ValueError(
            f"{owner}: measurements must be positive to be compared by logarithms, got {y.min()}; set "
            "residual='difference'."
        )
