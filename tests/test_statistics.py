"""Intervals, fronts and quartiles against SciPy and by simulation: a 95 % interval holds the truth 95 times in 100."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.statistics import interval, jackknife_interval, pareto_front, quartiles, stratified_mean

TRIALS = 4000
Interval = tuple[float, float, float]


def coverage(draw: Callable[[np.random.Generator], Interval], truth: float) -> float:
    """How often an interval holds the truth, of TRIALS."""
    rng = np.random.default_rng(0)
    return float(np.mean([low <= truth <= high for _, low, high in (draw(rng) for _ in range(TRIALS))]))


def test_an_interval_is_students() -> None:
    values = np.random.default_rng(1).gamma(2, 3, 9)
    expected = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert interval(values) == pytest.approx((values.mean(), *expected))
    assert interval(np.array([3.0])) == (3, -np.inf, np.inf)
    assert interval(np.full(5, 2.0)) == (2, 2, 2)


def test_the_mean_of_two_strata_has_welchs_interval() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(1, 1, 6), rng.normal(5, 4, 11)
    welch = stats.ttest_ind(one, -other, equal_var=False).confidence_interval()  # of mean(one) + mean(other)
    assert interval(one, other)[1:] == pytest.approx((welch.low / 2, welch.high / 2))
    assert interval(one, other)[0] == pytest.approx((one.mean() + other.mean()) / 2)
    assert interval(one, np.array([1.0]))[1:] == (-np.inf, np.inf)
    mean, error, freedom = stratified_mean(one, one)
    assert (mean, freedom) == pytest.approx((one.mean(), 10))
    assert error == pytest.approx(stats.sem(one) / np.sqrt(2))


def test_intervals_over_chunks_hold_the_truth_95_times_in_100() -> None:
    """Tokens of one chunk are alike: an interval over tokens would be far too narrow, one over chunks is right."""

    def chunk_means(rng: np.random.Generator, chunks: int, spread: float) -> np.ndarray:
        return rng.normal(0, spread, chunks) + rng.normal(0, 1, (chunks, 64)).mean(axis=1)

    assert coverage(lambda rng: interval(chunk_means(rng, 8, 1)), 0) == pytest.approx(0.95, abs=0.015)
    several = coverage(lambda rng: interval(chunk_means(rng, 8, 1), chunk_means(rng, 20, 3)), 0)
    assert several == pytest.approx(0.95, abs=0.015)

    def over_tokens(rng: np.random.Generator) -> Interval:
        return interval((rng.normal(0, 1, (8, 1)) + rng.normal(0, 1, (8, 64))).ravel())

    assert coverage(over_tokens, 0) < 0.5


def test_a_jackknifed_mean_is_students_and_a_ratios_interval_holds_the_truth() -> None:
    values = np.random.default_rng(3).exponential(1, 12)
    assert jackknife_interval(lambda mean: mean, values) == pytest.approx(interval(values))

    def ratio(rng: np.random.Generator) -> Interval:
        alone = rng.gamma(20, 1, 20)
        both = 1.5 * alone + rng.normal(0, 3, 20)
        return jackknife_interval(lambda b, a: b / a, both, alone)

    assert coverage(ratio, 1.5) == pytest.approx(0.95, abs=0.015)
    assert jackknife_interval(lambda mean: mean, np.ones(1)) == (1, -np.inf, np.inf)


def test_a_pareto_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        costs, losses = rng.integers(0, 6, (2, 12)).tolist()
        front = pareto_front(costs, losses)
        points = list(zip(costs, losses, strict=True))
        beaten = {
            point for point, other in itertools.permutations(set(points), 2)
            if other[0] <= point[0] and other[1] <= point[1]
        }  # fmt: skip
        assert {points[index] for index in front} == set(points) - beaten
        assert [costs[index] for index in front] == sorted({costs[index] for index in front})
    assert pareto_front([], []) == []


def test_quartiles_are_numpys_percentiles_and_scipys() -> None:
    values = np.random.default_rng(5).exponential(1, 23)
    found = quartiles(values)
    assert found is not None
    assert (found.low, found.median, found.high) == pytest.approx(
        (stats.scoreatpercentile(values, 25), np.median(values), stats.scoreatpercentile(values, 75))
    )
    assert found.high - found.low == pytest.approx(stats.iqr(values))
    assert quartiles(np.empty(0)) is None
