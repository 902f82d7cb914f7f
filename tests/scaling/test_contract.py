"""What every fit does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.scaling.cases import FITS, FitCase

fits = pytest.mark.parametrize("case", FITS, ids=lambda case: case.id)


def rel(case: FitCase) -> float:
    return 1e-5 if case.id == "falling to an offset" else 1e-6  # the offset makes the problem badly conditioned


@fits
def test_the_parameters_of_a_noiseless_law_are_recovered(case: FitCase) -> None:
    fit = case.fit(case.inputs, case.law(case.inputs))
    assert case.read(fit) == pytest.approx(case.truth, rel=rel(case))
    assert fit.r2 == pytest.approx(1.0)
    np.testing.assert_allclose(fit.predict(10 * case.inputs), case.law(10 * case.inputs), rtol=1e-4)


@fits
def test_the_order_of_the_points_does_not_matter(case: FitCase) -> None:
    noisy = case.law(case.inputs) * np.exp(0.01 * np.random.default_rng(0).standard_normal(12))
    order = np.random.default_rng(1).permutation(12)
    first = case.read(case.fit(case.inputs, noisy))
    assert case.read(case.fit(case.inputs[..., order], noisy[order])) == pytest.approx(first, rel=1e-3)


@fits
def test_other_units_give_the_same_law(case: FitCase) -> None:
    if case.id == "two inputs":
        pytest.skip("fit_law leaves units to its caller")
    observed = case.law(case.inputs)
    fit = case.fit(case.inputs / 1e6, observed * 1e3)
    np.testing.assert_allclose(fit.predict(case.inputs / 1e6), observed * 1e3, rtol=1e-5)
    assert fit.exponent == pytest.approx(case.truth["exponent"], rel=rel(case))
    assert fit.offset == pytest.approx(case.truth["offset"] * 1e3, rel=rel(case))


@fits
def test_too_few_points_raise(case: FitCase) -> None:
    count = case.fewest - 1
    with pytest.raises(ValueError, match=f"needs at least {case.fewest} points for {case.fewest} parameters"):
        case.fit(case.inputs[..., :count], case.law(case.inputs)[:count])


@fits
def test_one_outlier_hardly_moves_the_fit(case: FitCase) -> None:
    observed = case.law(case.inputs) * np.exp(0.003 * np.random.default_rng(0).standard_normal(12))
    spoiled = observed.copy()
    spoiled[5] *= 1.5
    far = 10 * case.inputs
    np.testing.assert_allclose(
        case.fit(case.inputs, spoiled).predict(far), case.fit(case.inputs, observed).predict(far), rtol=0.02
    )


@fits
def test_intervals_cover_the_truth_about_as_often_as_they_say(case: FitCase) -> None:
    generator = np.random.default_rng(1)
    covered = []
    for trial in range(10):
        noise = 0.004 * generator.standard_normal(12)
        truth = case.law(case.inputs)
        observed = truth * np.exp(noise) if case.residual == "log" else truth + truth.mean() * noise
        fit = case.fit(case.inputs, observed)
        for name, (low, high) in fit.confidence(0.9, num_resamples=25, seed=trial).items():
            if case.truth[name]:  # a fixed offset has no interval
                covered.append(low <= case.truth[name] <= high)
    assert np.mean(covered) >= 0.7  # ten simulations with correlated parameters: 0.9 less two standard errors


def test_an_interval_of_the_prediction_holds_it_and_narrows_with_the_level() -> None:
    case = FITS[0]
    noise = 0.004 * np.random.default_rng(3).standard_normal(12)
    fit = case.fit(case.inputs, case.law(case.inputs) * np.exp(noise))
    far = np.array([1e10])
    (low,), (high,) = fit.interval(far, 0.9, num_resamples=30)
    (inner_low,), (inner_high,) = fit.interval(far, 0.5, num_resamples=30)
    assert low < inner_low < float(fit.predict(far)[0]) < inner_high < high
