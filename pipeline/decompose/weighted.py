"""PCA under a metric: how much an input direction counts, and how much an output direction counts.

The objective is the mean square of what a matrix's error does, weighted: for rows A (n, d) the rank-r A' minimises

    trace(L (A' - A) M (A' - A)^T L^T)

over all matrices that are `mean` plus rank r. With M = S S^T the rows L (A - mean) S are decomposed by ordinary PCA
without centring, whose truncation is optimal (Eckart and Young, 1936), and what it gives is turned back. L is block
diagonal and stands for its Gram matrix: only L^T L is in the objective.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.decompose.lapack import times_triangle
from pipeline.decompose.principal_components import centre

RIDGE = 1e-6  # of M's trace, added to its diagonal: more than what float32 sums got wrong, so that M can be inverted
PSEUDO_INVERSE = 1e-10  # of the largest eigenvalue: what counts as none, such as of rows that have a low rank


@dataclass(frozen=True)
class Metric:
    """inputs: M, (d, d), symmetric and positive semi-definite, or (d,) if it is diagonal, float64
    outputs: the diagonal blocks of L^T L, each (b, b), or (b,) if it is itself diagonal, float64, their sizes adding up
        to n; None for the identity
    root: what `triangular_root` makes of `inputs`, if it is known
    """

    inputs: np.ndarray
    outputs: Sequence[np.ndarray] | None = None
    root: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def input_factor(self) -> np.ndarray:
        """S, lower triangular, (d, d), or (d,) if it is diagonal: M = S S^T up to RIDGE."""
        return triangular_root(self.inputs) if self.root is None else self.root

    @property
    def unit_factor(self) -> np.ndarray:
        """S for M divided by its trace, such that the metrics of several layers can be averaged."""
        return self.input_factor / np.linalg.norm(self.input_factor)

    @cached_property
    def output_factors(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """L and its inverse, block by block: the symmetric square roots."""
        return [_square_root(block) for block in self.outputs or ()]

    def weigh(self, rows: np.ndarray) -> np.ndarray:
        """L rows S, (n, d)."""
        return self._with_input_factor(self.weigh_outputs(rows))

    def weigh_outputs(self, rows: np.ndarray) -> np.ndarray:
        """L rows, (n, d)."""
        return self._left(rows.astype(np.float64), 0)

    def unweigh_outputs(self, rows: np.ndarray) -> np.ndarray:
        """L^-1 rows, (n, d)."""
        return self._left(rows, 1)

    def unweigh(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """L^-1 left right S^-1, (n, d), of factors (n, r) and (r, d): of r rows S is taken, and not of all n."""
        return self.unweigh_outputs(left) @ self._without_input_factor(right)

    def _with_input_factor(self, rows: np.ndarray) -> np.ndarray:
        factor = self.input_factor
        return rows * factor if factor.ndim == 1 else times_triangle(rows, factor)

    def _without_input_factor(self, rows: np.ndarray) -> np.ndarray:
        factor = self.input_factor
        return rows / factor if factor.ndim == 1 else times_triangle(rows, factor, inverse=True)

    def error(self, difference: np.ndarray) -> float:
        """The objective for A' - A = `difference` (n, d)."""
        return float(np.square(self.weigh(difference)).sum())

    def _left(self, rows: np.ndarray, which: int) -> np.ndarray:
        if not self.output_factors:
            return rows
        result, start = np.empty_like(rows), 0
        for factors in self.output_factors:
            part, factor = slice(start, start + len(factors[0])), factors[which]
            result[part] = factor[:, None] * rows[part] if factor.ndim == 1 else factor @ rows[part]
            start = part.stop
        return result


@dataclass(frozen=True)
class ResultMetric(Metric):
    """A metric of wide rows A (n, d) by what they make of their inputs x, y = A x; `inputs` is E[y y^T], (n, n).

    All that a metric by E[x x^T] = M is asked for are products of combinations of A's rows: A M A^T = E[y y^T]. It takes
    (d / n)^2 less room than M, to which A^+ E[y y^T] A^+T is equal on A's rows.
    """

    rows: np.ndarray = field(kw_only=True)

    @cached_property
    def input_factor(self) -> np.ndarray:
        """S = A^+ R, (d, n), with E[y y^T] = R R^T up to RIDGE."""
        rows = self.rows.astype(np.float64)
        return rows.T @ (np.linalg.pinv(rows @ rows.T, rcond=PSEUDO_INVERSE, hermitian=True) @ self._result_factor)

    @cached_property
    def _result_factor(self) -> np.ndarray:
        return triangular_root(self.inputs) if self.root is None else self.root

    def _with_input_factor(self, rows: np.ndarray) -> np.ndarray:
        return rows @ self.input_factor

    def _without_input_factor(self, rows: np.ndarray) -> np.ndarray:
        """Rows (r, n) R^-1 A, as S^+ = R^-1 A."""
        return times_triangle(rows, self._result_factor, inverse=True) @ self.rows


def mean_input_factor(metrics: Iterable[Metric]) -> np.ndarray | None:
    """S, lower triangular, (d, d), of the mean of the layers' M, each divided by its trace; None without any."""
    total, count = np.zeros(()), 0
    for metric in metrics:
        total, count = total + metric.unit_factor @ metric.unit_factor.T, count + 1
    return np.linalg.cholesky(total / count) if count else None


def triangular_root(moment: np.ndarray) -> np.ndarray:
    """S, lower triangular, of a `moment` S S^T, up to RIDGE: (d, d), or (d,) as the moment is."""
    trace = float(moment.sum() if moment.ndim == 1 else np.trace(moment))
    ridge = RIDGE * max(trace, np.finfo(float).tiny)
    if moment.ndim == 1:
        return np.sqrt(moment + ridge)
    shifted = moment.copy()
    shifted[np.diag_indices_from(shifted)] += ridge
    return np.linalg.cholesky(shifted)


def _square_root(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric square root of a positive semi-definite block, (b, b) or (b,), and its inverse, slightly regularised.

    A block of zeros, such as that of a k that no query meets, says nothing about directions: all count alike.
    """
    scale = float(np.abs(block).max(initial=0))
    if scale < np.finfo(float).tiny:
        return np.ones(len(block)), np.ones(len(block))
    if block.ndim == 1:
        roots = np.sqrt(np.maximum(block, scale * 1e-6))
        return roots, 1 / roots
    values, vectors = np.linalg.eigh(block / scale)
    roots = np.sqrt(np.maximum(values, values[-1] * 1e-6) * scale)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


@dataclass(frozen=True)
class WeightedRows:
    """Rows made ready: `rows` (n, d) go to `principal_components(rows, "none")`, the factors that it finds to `restore`."""

    rows: np.ndarray
    mean: np.ndarray
    metric: Metric

    def restore(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Rows rebuilt as left (n, r) right (r, d), without their weights, the mean added back: (n, d), float32."""
        return np.ascontiguousarray(self.mean + self.metric.unweigh(left, right), np.float32)


def weigh_rows(matrix: np.ndarray, metric: Metric, mean: str) -> WeightedRows:
    """Weigh the rows of `matrix` (n, d); `mean` as in `principal_components`."""
    centred, added_back = centre(matrix.astype(np.float64), mean)
    return WeightedRows(metric.weigh(centred), added_back, metric)
