"""Perplexity and KL divergence with their errors, from scores of single tokens, as llama.cpp's tool computes them."""

from math import exp, sqrt

import numpy as np

from pipeline.errors import SurgeryError


def mean_and_standard_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of `values` (n,) and sqrt(var / (n - 1)); the error is 0 for a single value."""
    n = len(values)
    return float(values.mean()), sqrt(float(values.var()) / (n - 1)) if n > 1 else 0.0


def perplexity(nll: np.ndarray) -> tuple[float, float]:
    """exp(mean nll) and its standard error, perplexity times that of the mean; `nll` (n,) in nats, all finite."""
    mean, error = mean_and_standard_error(nll)
    return exp(mean), exp(mean) * error


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
