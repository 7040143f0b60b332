"""Components that several layers share: one set of directions in the space of their inputs, coefficients a layer.

For rows A_l (n_l, d) of the layers of a group, directions V (d, r) that all share, and coefficients B_l (n_l, r) of
each layer's own, what is minimised is

    sum_l || L_l (A_l - mu - B_l V^T) S_l ||^2      (Frobenius; S_l S_l^T = C_l; mu the mean of all rows, or 0)

Without a metric (L and S the identity) that is PCA of the stacked rows: V are the leading eigenvectors of the sum of
the layers' d x d Gram matrices (Eckart and Young, 1936). Where every layer has the same C up to a factor, substituting
V = S^-T U leaves the same problem. Where they differ, no closed form is known. Then the start is the closed form for
the layers' mean C, as if each layer saw the inputs of all, nested in the rank; `refine` improves it at one rank, see
`pipeline.decompose.shared_subspace`. Given V the best B_l is A_l C_l V (V^T C_l V)^-1: each layer's weighted rows
projected on the span of S_l^T V. No V can do better than each layer with `r` directions of its own: a bound that is
reached where layers read the same directions, and far below what is possible where they do not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.decompose.eigenpairs import leading_eigenpairs
from pipeline.decompose.principal_components import RankedEnergies
from pipeline.decompose.shared_subspace import LayerTerm, climb, nested_energies
from pipeline.decompose.weighted import Metric, WeightedRows, mean_input_factor


@dataclass(frozen=True)
class CrossLayerComponents(RankedEnergies):
    """Directions in the input space that several layers share.

    removed: (d,), the mean that rows lose before they are projected
    mean: (d,), what a reconstruction adds back
    directions: (d, m), orthonormal columns, in the order in which they are kept
    energies: (m,), float64, the part of `total` that each direction adds to those before it
    total: the sum over layers of the squares of (weighted) rows
    count: the number of rows of all layers
    """

    removed: np.ndarray
    mean: np.ndarray
    directions: np.ndarray
    energies: np.ndarray
    total: float
    count: int

    @property
    def full_rank(self) -> int:
        """The number of directions with which every layer's reconstruction is exact."""
        return min(self.count, len(self.removed))

    def project(self, rows: np.ndarray, rank: int, metric: Metric | None = None) -> np.ndarray:
        """A layer's `rows` (n, d) from its best coefficients for the first `rank` directions, under its own metric.

        Without a metric in the dtype of `rows`, otherwise float32.
        """
        kept = self.directions[:, :rank]
        if metric is None:
            return ((rows - self.removed) @ kept) @ kept.T + self.mean
        weighted = WeightedRows(metric.weigh(rows - self.removed), self.mean, metric)
        seen, _ = np.linalg.qr(metric.input_factor.T @ kept)
        return weighted.restore(weighted.rows @ seen, seen.T)


@dataclass(frozen=True)
class WeightedCrossLayerComponents(CrossLayerComponents):
    """As above, under metrics. `terms` is a term a layer in the coordinates U = S^T V, where S S^T is the mean C."""

    terms: Sequence[LayerTerm]
    factor: np.ndarray

    def refine(self, rank: int) -> CrossLayerComponents:
        """The first `rank` directions replaced by ones that leave no more error at this rank, together."""
        if rank in (0, self.full_rank):
            return self
        start, _ = np.linalg.qr(self.factor.T @ self.directions[:, :rank])
        basis = climb(start, self.terms, self.total)
        directions, _ = np.linalg.qr(np.linalg.solve(self.factor.T, basis))
        energies = nested_energies(basis, self.terms)
        return CrossLayerComponents(self.removed, self.mean, directions, energies, self.total, self.count)


def stacked_mean(layers: Iterable[np.ndarray], mean: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean of all rows of all layers that is removed before the fit, and what is added back: (d,) float64 both."""
    count, total = 0, np.zeros(0)
    for rows in layers:
        count, total = count + len(rows), rows.sum(axis=0, dtype=np.float64) + (total if count else 0)
    average = np.zeros_like(total) if mean == "none" else total / count
    return average, average if mean == "keep" else np.zeros_like(average)


def cross_layer_components(layers: Iterable[np.ndarray], mean: str, share: float = 1.0) -> CrossLayerComponents:
    """Fit the directions that `layers`, each (n_l, d) and float32 or float64, share, as PCA of their stack would.

    `layers` is gone through twice, a layer at a time. `mean` is keep, none or drop, of the stack. Components beyond
    those that `share` of the variance needs may be missing.
    """
    removed, added_back = stacked_mean(layers, mean)
    product, count, dtype = np.zeros((len(removed),) * 2), 0, np.dtype(np.float32)
    for rows in layers:
        centred = rows - removed.astype(rows.dtype)
        product += centred.T @ centred
        count, dtype = count + len(rows), rows.dtype
    energies, directions = leading_eigenpairs(product.astype(dtype), share)
    full_rank = min(count, len(product))
    return CrossLayerComponents(
        removed.astype(dtype),
        added_back.astype(dtype),
        directions[:, :full_rank],
        energies[:full_rank],
        float(np.trace(product)),
        count,
    )


def weighted_cross_layer_components(
    layers: Iterable[np.ndarray],
    metrics: Iterable[Metric],
    mean: str,
    keep: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> WeightedCrossLayerComponents:
    """Fit the directions that `layers`, each (n_l, d), share under a metric each: the start, unrefined.

    Both are gone through twice, a layer at a time. What stays is a term a layer, d (n_l + d) numbers, which `keep` may
    put elsewhere than in memory.
    """
    removed, added_back = stacked_mean(layers, mean)
    factor = mean_input_factor(metrics)
    assert factor is not None  # a group has layers
    terms, product, total, count = [], np.zeros_like(factor), 0.0, 0
    for rows, metric in zip(layers, metrics, strict=True):
        weighted = metric.weigh(rows - removed)
        seen = np.linalg.solve(factor, metric.unit_factor).T
        terms.append(LayerTerm(keep(weighted @ seen), keep(seen.T @ seen)))
        unseen = np.linalg.solve(seen, weighted.T)  # the rows as they would be weighed if all layers had the mean C
        product += unseen @ unseen.T
        total, count = total + float(np.square(weighted).sum()), count + len(rows)
    full_rank = min(count, len(product))
    basis = np.linalg.eigh(product)[1][:, ::-1][:, :full_rank]
    directions, _ = np.linalg.qr(np.linalg.solve(factor.T, basis))
    energies = nested_energies(basis, terms)
    return WeightedCrossLayerComponents(
        removed, added_back, directions, energies, total, count, terms=terms, factor=factor
    )
