"""Symmetric matrices kept as their lower triangles, row by row: half the room."""

import numpy as np


def pack(matrix: np.ndarray) -> np.ndarray:
    """The lower triangle of a symmetric matrix (d, d), row by row: (d (d + 1) / 2,)."""
    d, start = len(matrix), 0
    triangle = np.empty(d * (d + 1) // 2, matrix.dtype)
    for row in range(d):
        triangle[start : start + row + 1] = matrix[row, : row + 1]
        start += row + 1
    return triangle


def unpack(triangle: np.ndarray) -> np.ndarray:
    """The symmetric matrix (d, d) whose lower triangle, row by row, is `triangle`."""
    d, start = (int((8 * len(triangle) + 1) ** 0.5) - 1) // 2, 0
    matrix = np.empty((d, d), triangle.dtype)
    for row in range(d):
        matrix[row, : row + 1] = matrix[: row + 1, row] = triangle[start : start + row + 1]
        start += row + 1
    return matrix
