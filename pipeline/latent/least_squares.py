"""Least squares without their normal equations: conjugate gradients, and what makes them short."""

from collections.abc import Callable

import numpy as np

SMALLEST = 1e-4  # eigenvalue, of the largest, that is still whitened
CONVERGED = 1e-9  # of the gradient's square: what single precision can tell


def conjugate_gradients(
    curvature: Callable[[np.ndarray], np.ndarray], gradient: np.ndarray, iterations: int
) -> np.ndarray:
    """x after `iterations` steps from 0 towards curvature(x) = gradient, or once single precision sees no more.

    curvature: linear, symmetric and positive. Source: Hestenes and Stiefel, Methods of conjugate gradients for solving
    linear systems, 1952.
    """
    result = np.zeros_like(gradient)
    direction, size = gradient, float(np.vdot(gradient, gradient))
    enough = CONVERGED * size
    for _ in range(iterations):
        if size <= enough:
            break
        image = curvature(direction)
        length = np.float32(size / float(np.vdot(direction, image)))
        result += length * direction
        gradient = gradient - length * image
        size, before = float(np.vdot(gradient, gradient)), size
        direction = gradient + np.float32(size / before) * direction
    return result


def inverse_root(moment: np.ndarray) -> np.ndarray:
    """The symmetric inverse square root of a moment matrix, its smallest eigenvalues lifted, float32."""
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    largest = float(values[-1]) + np.finfo(float).tiny
    return ((vectors / np.sqrt(np.maximum(values, 0) + SMALLEST * largest)) @ vectors.T).astype(np.float32)
