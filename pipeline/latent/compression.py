"""The latent: principal components that keys without rotation and values share, under what errors of them cost."""

from dataclasses import dataclass

import numpy as np

from pipeline.decompose.weighted import Metric
from pipeline.latent.equalise import equalising_scales


@dataclass(frozen=True)
class Compression:
    """Rows A (n, d) as `expand` (n, rank) times `latent` (rank, d), float64; `kept` is the share of energy in [0, 1]."""

    latent: np.ndarray
    expand: np.ndarray
    kept: float


def compress(rows: np.ndarray, metric: Metric, rank: int, seed: int) -> Compression:
    """The best rank-`rank` approximation of `rows` (n, d) under `metric`, see `pipeline.decompose.weighted`.

    The latent's numbers are made alike, since a cache that rounds in blocks loses least so: components are scaled as
    `equalising_scales` says, errors of all costing the same before, and then turned at random. `rank` may exceed what
    the rows have; the rest is 0.
    """
    left, values, _ = np.linalg.svd(metric.weigh(rows), full_matrices=False)
    used = min(rank, len(values))
    scales = equalising_scales(np.square(values[:used]), np.ones(used))
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((rank, rank)))[0][:, :used]
    latent = (turn * scales) @ (left[:, :used].T @ metric.weigh_outputs(rows))
    basis = (left[:, :used] / scales) @ turn.T
    size = np.sqrt(np.mean(np.sum((latent @ metric.inputs) * latent, axis=1)))
    total = float(np.square(values).sum())
    kept = float(np.square(values[:used]).sum()) / total if total else 1.0
    return Compression(latent / size, metric.unweigh_outputs(basis) * size, kept)
