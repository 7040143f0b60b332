"""How subspaces of the input space lie to each other: shares of energy, overlaps, and layers that are alike.

Under a metric everything is measured after its factor S has made the inputs round, so that a uniformly random subspace
of rank r holds r / d of any energy and of any other subspace on average: what a picture must be held against.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.decompose.weighted import Metric


def leading_directions(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (weighted) `rows` (n, d): right singular vectors (d, min(n, d)), strongest first, and squares of singular values."""
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    return right.T, np.square(values)


def cumulative_shares(rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """The share of the energy of `rows` (n, d) in the span of the first r `directions` (d, m), r from 1 to m: (m,)."""
    energies = np.square(rows @ directions).sum(axis=0)
    return np.minimum(np.cumsum(energies) / max(float(np.square(rows).sum()), np.finfo(float).tiny), 1.0)


def directions_read(rows: np.ndarray, metric: Metric | None, rank: int) -> np.ndarray:
    """The input directions (d, rank) that the best approximation of that rank of `rows` reads, weighted under `metric`."""
    leading, _ = leading_directions(rows)
    kept = leading[:, :rank]
    return kept if metric is None else np.linalg.solve(metric.input_factor.T, kept)


def overlaps(directions: Sequence[np.ndarray], factor: np.ndarray | None) -> np.ndarray:
    """For each pair of spans (d, r) the mean squared cosine of the angles between them: (L, L), 1 on the diagonal.

    Under a `factor` S (d, d), of which S S^T is the inputs' second moment, the angles are those between what the spans
    read off the inputs: the cosines are canonical correlations (Bjorck and Golub, Numerical methods for computing
    angles between linear subspaces, 1973).
    """
    bases = [np.linalg.qr(span if factor is None else factor.T @ span)[0] for span in directions]
    result = np.eye(len(bases))
    for i, one in enumerate(bases):
        for j in range(i):
            smaller = min(one.shape[1], bases[j].shape[1])
            result[i, j] = result[j, i] = np.square(one.T @ bases[j]).sum() / smaller
    return result


def groups_of_alike(similarity: np.ndarray, size: int) -> list[tuple[int, ...]]:
    """Groups of at most `size`, ascending, from a symmetric `similarity` (L, L): average linkage with a limit.

    The two groups whose members are most similar on average are joined, as long as two fit together; of equals the
    first.
    Source: Sokal and Michener, A statistical method for evaluating systematic relationships, 1958.
    """
    groups: list[tuple[int, ...]] = [(index,) for index in range(len(similarity))]
    while True:
        joined = [
            (-float(similarity[np.ix_(a, b)].mean()), a, b)
            for index, a in enumerate(groups)
            for b in groups[index + 1 :]
            if len(a) + len(b) <= size
        ]
        if not joined:
            return sorted(groups)
        _, a, b = min(joined)
        groups = [group for group in groups if group not in (a, b)] + [tuple(sorted(a + b))]
