"""One subspace for several quadratic forms: the heart of components that layers share under a metric each.

With terms K_l (n_l, d) and G_l (d, d), positive definite, whose mean is about the identity, the energy captured by the
span of U (d, r) is

    f(U) = sum_l trace((U^T G_l U)^-1 U^T K_l^T K_l U)

It depends on the span alone. Where every G_l is a multiple of the identity the leading eigenvectors of sum_l K_l^T K_l
are its maximum (Fan, On a theorem of Weyl, 1949); otherwise it has no closed form and may have local maxima.
Substituting the best B_l = K_l U (U^T G_l U)^-1 makes the least squares problem in U and all B_l one in U alone (Golub
and Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems whose variables separate,
1973). It is climbed by conjugate gradients on the Grassmann manifold (Edelman, Arias and Smith, The geometry of
algorithms with orthogonality constraints, 1998), preconditioned by the least squares problem's curvature with the
identity for G_l: the first step is then one of alternating least squares with that, and where all G_l are the identity
one of subspace iteration. Every step is taken only if it captures more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_PASSES = 40
TOLERANCE = 1e-3  # of the error: a pass that gains less is the last
NEGLIGIBLE = 1e-12  # of the total: an error that is rounding
SHORTEST_STEP = 1e-3
LONGEST_STEP = 2.0


@dataclass(frozen=True)
class LayerTerm:
    """rows: K, (n, d); inputs: G, (d, d), symmetric and positive definite; float64."""

    rows: np.ndarray
    inputs: np.ndarray


@dataclass(frozen=True)
class Capture:
    """basis: U, (d, r), orthonormal; energy: f(U); gradient: half of f's, (d, r); curvature: sum_l B_l^T B_l, (r, r)."""

    basis: np.ndarray
    energy: float
    gradient: np.ndarray
    curvature: np.ndarray


def capture(basis: np.ndarray, terms: Sequence[LayerTerm]) -> Capture:
    """f at the orthonormal `basis` (d, r), with what a step from there needs: one pass over the terms."""
    energy, gradient, curvature = 0.0, np.zeros_like(basis), np.zeros((basis.shape[1],) * 2)
    for term in terms:
        rows, inputs = term.rows @ basis, term.inputs @ basis
        coefficients = np.linalg.solve(basis.T @ inputs, rows.T).T
        energy += float(np.sum(coefficients * rows))
        own = coefficients.T @ coefficients
        curvature += own
        gradient += term.rows.T @ coefficients - inputs @ own
    return Capture(basis, energy, gradient, curvature)


def nested_energies(basis: np.ndarray, terms: Sequence[LayerTerm]) -> np.ndarray:
    """What each further column of `basis` (d, m) adds to f: (m,), not negative, not always descending.

    The leading blocks of the Cholesky factor of U^T G_l U are those of its leading columns, so that one serves all
    ranks.
    """
    added = np.zeros(basis.shape[1])
    for term in terms:
        factor = np.linalg.cholesky(basis.T @ term.inputs @ basis)
        added += np.square(np.linalg.solve(factor, (term.rows @ basis).T)).sum(axis=1)
    return added


def climb(start: np.ndarray, terms: Sequence[LayerTerm], total: float) -> np.ndarray:
    """An orthonormal basis (d, r) that captures no less of `total` than `start` (d, r), orthonormal: a local maximum.

    Stops when a pass over the terms gains less than TOLERANCE of the error that is left, or after MOST_PASSES.
    """
    now = capture(start, terms)
    step, before, length, passes = np.zeros_like(start), None, 1.0, 1
    while passes < MOST_PASSES and total - now.energy > NEGLIGIBLE * total:
        steepest = _preconditioned(now)
        slope = float(np.sum(steepest * now.gradient))
        if before is not None:  # Polak and Ribiere, restarted when it would not climb
            old_gradient, old_slope = before
            step = steepest + max(0.0, (slope - np.sum(steepest * old_gradient)) / old_slope) * _tangent(now, step)
        if before is None or np.sum(step * now.gradient) <= 0:
            step = steepest
        found, turn = None, np.empty(0)
        while found is None and passes < MOST_PASSES and length > SHORTEST_STEP:
            basis, turn = np.linalg.qr(now.basis + length * step)
            trial, passes = capture(basis, terms), passes + 1
            if trial.energy > now.energy:
                found = trial
            else:
                length /= 2
        if found is None:
            break
        gained, error = found.energy - now.energy, total - now.energy
        step, before = np.linalg.solve(turn.T, step.T).T, (now.gradient @ turn.T, slope)  # in the new columns
        now, length = found, min(1.5 * length, LONGEST_STEP)
        if gained < TOLERANCE * error:
            break
    return now.basis


def _preconditioned(now: Capture) -> np.ndarray:
    """The direction of ascent: the gradient in units of the curvature, within the tangent space."""
    r = len(now.curvature)
    ridge = np.finfo(float).eps * r * np.trace(now.curvature)
    return _tangent(now, np.linalg.solve(now.curvature + ridge * np.eye(r), now.gradient.T).T)


def _tangent(now: Capture, step: np.ndarray) -> np.ndarray:
    return step - now.basis @ (now.basis.T @ step)
