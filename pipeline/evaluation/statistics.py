"""Perplexity and KL divergence with their errors, from scores of single tokens, as llama.cpp's tool computes them."""

from collections.abc import Callable, Sequence
from math import exp, inf, sqrt

import numpy as np
from scipy.special import stdtrit

from pipeline.errors import SurgeryError


def mean_and_standard_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of `values` (n,) and sqrt(var / (n - 1)); the error is 0 for a single value."""
    n = len(values)
    return float(values.mean()), sqrt(float(values.var()) / (n - 1)) if n > 1 else 0.0


def perplexity(nll: np.ndarray) -> tuple[float, float]:
    """exp(mean nll) and its standard error, perplexity times that of the mean; `nll` (n,) in nats, all finite.

    Both are infinite where the perplexity is beyond what a float holds, above a mean of 709.78 nats.
    """
    mean, error = mean_and_standard_error(nll)
    try:
        return exp(mean), exp(mean) * error
    except OverflowError:
        return inf, inf


def divergence_summary(kld: np.ndarray, same_top: np.ndarray) -> dict[str, float]:
    """Mean, standard error, median and 99th percentile of `kld` (n,) in nats, and the share of `same_top` (n,) bool."""
    mean, error = mean_and_standard_error(kld)
    return {
        "kld_mean": mean,
        "kld_se": error,
        "kld_median": float(np.median(kld)),
        "kld_p99": float(np.quantile(kld, 0.99)),
        "same_top": float(same_top.mean()),
    }


def require_finite(name: str, values: np.ndarray) -> None:
    """Raise SurgeryError when a value is NaN or infinite: a broken model must not look like a good one."""
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        raise SurgeryError(f"{name} is {values[where]} at scored token {where}; the model is numerically broken")


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of independent `values` (n,) and its 95 % confidence interval by Student's t; infinite for n = 1."""
    return _around(*mean_and_standard_error(values), len(values))


def interval_bounds(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The bounds of `interval` as JSON can hold them: None for a single value."""
    return interval(values)[1:] if len(values) > 1 else (None, None)


def jackknife_interval(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> tuple[float, float, float]:
    """`statistic` of the means of paired `samples`, each (n,), and its 95 % interval by the jackknife.

    `statistic` takes arrays of means, one a sample, and works element by element. Each pair is left out once; Student's
    t with n - 1 degrees of freedom (Miller, The jackknife: a review, 1974). Infinite for n = 1.
    """
    n = len(samples[0])
    estimate = float(statistic(*(sample.mean() for sample in samples)))
    if n < 2:
        return estimate, -np.inf, np.inf
    without = statistic(*((sample.sum() - sample) / (n - 1) for sample in samples))
    error = sqrt((n - 1) / n * float(np.square(without - without.mean()).sum()))
    return _around(estimate, error, n)


def _around(centre: float, error: float, n: int) -> tuple[float, float, float]:
    half = error * float(stdtrit(n - 1, 0.975)) if n > 1 else np.inf
    return centre, centre - half, centre + half


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The indices of points that no other beats: none costs at most as much and loses less, or costs less as well."""
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], losses[i])):
        if not front or losses[index] < losses[front[-1]]:
            front.append(index)
    return front


def quartiles(values: np.ndarray) -> dict[str, float] | None:
    """The median of `values` (n,) as `median`, the quartiles as `low` and `high`; None if there are none."""
    if not len(values):
        return None
    return dict(zip(("low", "median", "high"), map(float, np.quantile(values, (0.25, 0.5, 0.75))), strict=True))
