"""Eigenpairs of a Gram matrix: all of them, or only the leading ones that a share of the trace needs."""

from contextlib import suppress

import numpy as np

from pipeline.decompose.lapack import symmetric_eigenpairs

SMALLEST_ITERATED = 256  # rows; below, the full decomposition takes milliseconds
LARGEST_SHARE = 0.6  # of the trace; more would hardly ever fit into the block
BLOCK_SHARE = 8  # the iterated block is one eighth of the rows, and only its leading part is trusted
TRUSTED_SHARE = 0.6
CUTOFF_SHARE = 0.9  # the last Ritz values are far too small at first, these less so
DEGREE = 4
MOST_PASSES = 6
TOLERANCE = 5e-5  # of the rows' norm: what the projection may differ from the exact one


def leading_eigenpairs(
    matrix: np.ndarray, share: float = 1.0, *, overwrite: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenpairs of a positive semidefinite `matrix` (n, n), at least as many as `share` of its trace needs.

    `overwrite` says that `matrix` is not needed any more. Returns eigenvalues (m,), float64, descending and not
    negative, and eigenvectors (n, m) in the dtype of `matrix`. LAPACK's divide and conquer finds all of them. Where a
    small block is enough, Chebyshev-filtered subspace iteration (Zhou, Saad, Tiago and Chelikowsky,
    Self-consistent-field calculations using Chebyshev-filtered subspace iteration, 2006) finds the leading ones of a
    float32 matrix in a fraction of the time.
    """
    found = None
    if share <= LARGEST_SHARE and len(matrix) >= SMALLEST_ITERATED and matrix.dtype == np.float32:
        # a matrix of lower rank than the block, or eigenvalues so far apart that their polynomials overflow
        with suppress(np.linalg.LinAlgError), np.errstate(over="ignore", invalid="ignore"):
            found = _iterate(matrix, share)
    if found is None:
        values, vectors = symmetric_eigenpairs(matrix, overwrite=overwrite)
        found = values[::-1], vectors.T[::-1].copy().T
    return np.clip(found[0].astype(np.float64), 0, None), found[1]


def _iterate(matrix: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The leading eigenpairs by subspace iteration; None when the block cannot hold them with room to spare."""
    n = len(matrix)
    wanted = share * float(np.trace(matrix, dtype=np.float64))
    block = n // BLOCK_SHARE
    if wanted <= 0:
        return None
    basis = matrix @ (np.random.default_rng(0).random((n, block), matrix.dtype) - matrix.dtype.type(0.5))
    enough = False  # whether the filter that made this basis was the last that is needed
    for number in range(MOST_PASSES):
        basis /= np.linalg.norm(basis, axis=0)
        image = matrix @ basis
        values, rotation = _ritz(basis, image)
        rank = int(np.searchsorted(np.cumsum(values, dtype=np.float64), wanted)) + 1
        if rank > TRUSTED_SHARE * block or values[-1] <= np.finfo(matrix.dtype).eps * values[0]:
            return None
        basis = basis @ rotation
        if enough:
            return values, basis
        image = image @ rotation
        cutoff = float(values[int(CUTOFF_SHARE * block)])
        if values[rank - 1] <= cutoff:  # flat: nothing to tell the leading ones by
            return None
        error = _projection_error(basis[:, :rank], image[:, :rank], values[:rank], cutoff) / wanted**0.5
        growth = _chebyshev_growth(float(values[rank - 1]) / cutoff)  # the next filter divides the error by it
        enough = number > 0 and error / growth < TOLERANCE
        basis = _chebyshev(matrix, basis, image, cutoff)
    return None


def _ritz(basis: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rayleigh-Ritz in a basis that need not be orthonormal: values, descending, and the rotation that makes it so."""
    inverse = np.linalg.inv(np.linalg.cholesky((basis.T @ basis).astype(np.float64)))
    values, vectors = symmetric_eigenpairs((inverse @ (basis.T @ image) @ inverse.T).astype(basis.dtype))
    return values[::-1], inverse.T.astype(basis.dtype) @ vectors[:, ::-1]


def _projection_error(basis: np.ndarray, image: np.ndarray, values: np.ndarray, cutoff: float) -> float:
    """First-order estimate of what the rows lose in norm by the angle between Ritz vectors and eigenvectors.

    The angle is the residual over the gap to the first value outside the block (Davis and Kahan, 1970).
    """
    residual = np.linalg.norm(image - basis * values, axis=0)
    angle = residual / (values - cutoff)
    return float(np.sqrt(np.sum(np.square(angle) * values)))


def _chebyshev(matrix: np.ndarray, basis: np.ndarray, image: np.ndarray, cutoff: float) -> np.ndarray:
    """T_DEGREE of `matrix` mapped such that [0, cutoff] becomes [-1, 1], times `basis`; `image` is matrix @ basis."""
    half = matrix.dtype.type(cutoff / 2)
    before, now = basis, image / half - basis
    for _ in range(DEGREE - 1):
        before, now = now, 2 * (matrix @ now / half - now) - before
    return now


def _chebyshev_growth(ratio: float) -> float:
    """How much `_chebyshev` favours an eigenvalue of `ratio` (> 1) times the cutoff over those below the cutoff."""
    return float(np.cosh(DEGREE * np.arccosh(2 * ratio - 1)))
