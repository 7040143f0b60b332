"""Shares of right answers, and whether two models that were asked the same differ."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import binomtest

from pipeline.evaluation.statistics import interval

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations
RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean over items and its 95 % interval; no bounds where there is a single item."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A mean difference over the same items, model less base, and its 95 % interval by the bootstrap.

    gained, lost: items that the model alone has right, and the base alone; p: the probability that fair coins fall at
    least as unevenly (McNemar's test, exact). All three are None where items are not right or wrong.
    """

    difference: Estimate
    gained: int | None
    lost: int | None
    p: float | None


def estimate(values: np.ndarray) -> Estimate:
    """The mean of `values` (n,) and its interval: Wilson's where all are 0 or 1, else Student's."""
    if _binary(values):
        return Estimate(float(values.mean()), *wilson(int(values.sum()), len(values)))
    mean, low, high = interval(values)
    return Estimate(mean, low, high) if len(values) > 1 else Estimate(mean, None, None)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `n` > 0 (Wilson, Probable inference, 1927)."""
    share, spread = right / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def compare(mine: np.ndarray, base: np.ndarray) -> Comparison:
    """Compare values (n,) of the same n > 0 items."""
    differences = mine - base
    difference = Estimate(float(differences.mean()), *bootstrap(differences))
    if not (_binary(mine) and _binary(base)):
        return Comparison(difference, None, None, None)
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Comparison(difference, gained, lost, float(p))


def bootstrap(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of the mean of `values` (n,): quantiles over resampled items; None for a single one.

    Items of one value are drawn together: how often each value comes up is multinomial.
    """
    if len(values) < 2:
        return None, None
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(values), counts / len(values), RESAMPLES)
    low, high = np.quantile(drawn @ distinct / len(values), (0.025, 0.975))
    return float(low), float(high)


def _binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())
