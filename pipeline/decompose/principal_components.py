"""PCA of a matrix's rows, from the eigenpairs of the smaller of its two Gram matrices.

With `mean="keep"` this is scikit-learn's PCA: fit, transform, inverse_transform (Jolliffe, Principal Component
Analysis, 2002, section 3.5, for PCA from the Gram matrix).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.decompose.eigenpairs import leading_eigenpairs

MEANS = ("keep", "none", "drop")


class RankedEnergies(ABC):
    """Components in the order in which they are kept: `energies`, (m,), the part of `total` that each carries."""

    energies: np.ndarray
    total: float

    @property
    @abstractmethod
    def full_rank(self) -> int:
        """The number of components with which the reconstruction is exact."""

    def rank_for(self, threshold: float) -> int:
        """The fewest components whose share of the variance reaches `threshold`, in (0, 1]; 0 if there is none."""
        if self.total == 0:
            return 0
        if threshold >= 1:
            return self.full_rank
        shares = np.cumsum(self.energies[: self.full_rank]) / self.total
        return ranks_reaching(shares, [threshold])[0]

    def explained(self, rank: int) -> float:
        """The share of the variance, in [0, 1], that the first `rank` components carry."""
        if self.total == 0 or rank >= self.full_rank:
            return 1.0
        return float(min(self.energies[:rank].sum() / self.total, 1.0))


@dataclass(frozen=True)
class RowDecomposition(RankedEnergies):
    """Rows as `mean + basis @ (basis.T @ centred)` or, for tall matrices, `mean + (centred @ basis) @ basis.T`.

    centred: (n, d), the rows less the mean that was removed before the fit
    mean: (d,), what a reconstruction adds back
    basis: (min(n, d), m), orthonormal columns, in the order in which components are kept
    energies: (m,), float64, the part of `total` that each component carries
    total: the sum of squares of `centred`: the variance times n - 1
    """

    centred: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    energies: np.ndarray
    total: float

    @property
    def full_rank(self) -> int:
        """The number of components with which the reconstruction is exact."""
        return min(self.centred.shape)

    def reconstruct(self, rank: int) -> np.ndarray:
        """The rows from their first `rank` components: (n, d), in the dtype of `centred`."""
        return next(self.reconstructions([rank]))

    def factors(self, rank: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Left (n, r) and right (r, d), whose product is what the components from `start` up to `rank` add to the mean."""
        basis = self.basis[:, start:rank]
        wide = len(self.basis) == len(self.centred)
        return (basis, basis.T @ self.centred) if wide else (self.centred @ basis, basis.T)

    def reconstructions(self, ranks: Iterable[int]) -> Iterator[np.ndarray]:
        """The reconstructions for ascending `ranks`, together for the price of the last one alone."""
        result, done = self.mean, 0
        for rank in ranks:
            left, right = self.factors(rank, done)
            part = left @ right
            part += result
            result = part
            done = rank
            yield result


def centre(matrix: np.ndarray, mean: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) as they go into the fit, and the row (d,) that a reconstruction adds back.

    `keep`: the mean goes and comes back; `none`: nothing goes; `drop`: the mean goes and is lost.
    """
    nothing = np.zeros(matrix.shape[1], matrix.dtype)
    if mean == "none":
        return matrix, nothing
    average = matrix.mean(axis=0, dtype=np.float64).astype(matrix.dtype)
    return matrix - average, average if mean == "keep" else nothing


def gram(rows: np.ndarray) -> np.ndarray:
    """The smaller Gram matrix of `rows` (n, d): n x n of its rows, or d x d of its columns if n > d."""
    return rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows


def principal_components(matrix: np.ndarray, mean: str = "keep", share: float = 1.0) -> RowDecomposition:
    """Decompose the rows of `matrix` (n, d), float32 or float64, into principal components, strongest first.

    Components beyond those that `share` of the variance needs may be missing.
    """
    centred, added_back = centre(matrix, mean)
    product = gram(centred)
    total = float(np.trace(product, dtype=np.float64))
    energies, basis = leading_eigenpairs(product, share, overwrite=True)
    return RowDecomposition(centred, added_back, basis, energies, total)


def explained_variance(rows: np.ndarray) -> np.ndarray:
    """The share of the energy of `rows` (n, d), centred or not, that their first r components carry: (min(n, d),)."""
    product = gram(rows)
    energies = np.clip(np.linalg.eigvalsh(product)[::-1].astype(np.float64), 0, None)
    return np.minimum(np.cumsum(energies) / max(float(energies.sum()), np.finfo(float).tiny), 1.0)


def ranks_reaching(shares: np.ndarray, thresholds: Iterable[float]) -> list[int]:
    """For each of `thresholds`, in (0, 1], the fewest components whose cumulative `shares` (m,) reach it."""
    return [min(int(np.searchsorted(shares, t * (1 - 1e-12))) + 1, len(shares)) for t in thresholds]
