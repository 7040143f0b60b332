"""Means with their errors, intervals, fronts: what a number from few chunks is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.special import stdtrit

from pipeline.errors import SurgeryError


def mean_and_standard_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of `values` (n,) and sqrt(var / (n - 1)); the error is 0 for a single value."""
    n = len(values)
    return float(values.mean()), sqrt(float(values.var()) / (n - 1)) if n > 1 else 0.0


def require_finite(name: str, values: np.ndarray, where: str = "") -> None:
    """Raise SurgeryError when a value is NaN or infinite: a broken model must not look like a good one.

    `name` says of what the values are, `where` of which part of a text.
    """
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        place = f"scored token {first}" + (f" of {where}" if where else "")
        raise SurgeryError(f"{name} is {values[first]} at {place}; the model is numerically broken")


def interval(*strata: np.ndarray) -> tuple[float, float, float]:
    """The mean of the means of `strata`, each (n,) of independent values, and its 95 % confidence interval.

    Of one stratum that is Student's t with n - 1 degrees of freedom; of several, which count alike however many values
    they have, Welch's with Satterthwaite's degrees of freedom (An approximate distribution of estimates of variance
    components, 1946). Infinite when a stratum has a single value.
    """
    mean, error, freedom = stratified_mean(*strata)
    return mean, *_around(mean, error, freedom)


def stratified_mean(*strata: np.ndarray) -> tuple[float, float, float]:
    """The mean of the means of `strata`, its standard error, and the error's degrees of freedom, 0 when not known."""
    means, errors = np.array([mean_and_standard_error(values) for values in strata]).T
    freedoms = np.array([len(values) - 1 for values in strata])
    variances = np.square(errors)
    total = float(variances.sum())
    if not freedoms.all():
        freedom = 0.0
    elif total == 0:
        freedom = float(freedoms.sum())
    else:
        shares = variances / total
        freedom = 1 / float((np.square(shares) / freedoms).sum())
    return float(means.mean()), sqrt(total) / len(strata), freedom


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
    return estimate, *_around(estimate, error, n - 1)


def _around(centre: float, error: float, freedom: float) -> tuple[float, float]:
    half = error * float(stdtrit(freedom, 0.975)) if freedom else np.inf
    return centre - half, centre + half


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The indices of points that no other beats: none costs at most as much and loses less, or costs less as well."""
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], losses[i])):
        if not front or losses[index] < losses[front[-1]]:
            front.append(index)
    return front


@dataclass(frozen=True)
class Quartiles:
    """The median of some values, and the quartiles around it."""

    low: float
    median: float
    high: float


def quartiles(values: np.ndarray) -> Quartiles | None:
    """The quartiles of `values` (n,), interpolated; a single value is all three, of none there are none."""
    return Quartiles(*map(float, np.quantile(values, (0.25, 0.5, 0.75)))) if len(values) else None
