"""What attention does with q, k and v, as second moments: which error of an output feature counts how much.

A score is q . k after both were turned by RoPE, so an error of k counts by the second moment of the queries that meet
it, an error of q by that of the keys; an error of v counts by the columns of the output projection that read it.
RoPE turns each pair of a head's features by an angle that depends on the distance between two tokens; averaged over
all angles, what is left of a second moment is the mean of its diagonal over each pair.
"""

from collections.abc import Sequence

import numpy as np


def projected_moments(
    rows: np.ndarray, moment: np.ndarray, mean: np.ndarray, bias: np.ndarray | None, heads: int
) -> list[np.ndarray]:
    """E[y y^T] of y = rows x + bias for each head: `heads` matrices (n / heads, n / heads), float64.

    rows: (n, d); moment: E[x x^T], (d, d); mean: E[x], (d,); bias: (n,) or None
    """
    result = []
    offsets = np.zeros(len(rows)) if bias is None else bias.astype(np.float64)
    for part, offset in zip(np.split(rows.astype(np.float64), heads), np.split(offsets, heads), strict=True):
        cross = np.outer(part @ mean, offset)
        result.append(part @ moment @ part.T + cross + cross.T + np.outer(offset, offset))
    return result


def average_over_turns(moment: np.ndarray, rope: str, dimensions: int) -> np.ndarray:
    """A head's second moment (b, b) averaged over RoPE's angles.

    `rope`: how the first `dimensions` features are paired, `norm` (2i, 2i + 1), `neox` (i, i + dimensions / 2), or
    `none`. Features beyond keep their moments among themselves.
    """
    if rope == "none" or not dimensions:
        return moment
    half = dimensions // 2
    first, second = (
        (np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2))
        if rope == "norm"
        else (np.arange(half), np.arange(half, 2 * half))
    )
    result = np.zeros_like(moment)
    result[2 * half :, 2 * half :] = moment[2 * half :, 2 * half :]
    energy = np.diag(moment)
    result[first, first] = result[second, second] = (energy[first] + energy[second]) / 2
    return result


def sums_of_groups(blocks: Sequence[np.ndarray], groups: int) -> list[np.ndarray]:
    """Add up each run of len(blocks) / groups blocks: what the query heads of a key/value head do together."""
    size = len(blocks) // groups
    return [sum(blocks[start : start + size], np.zeros_like(blocks[0])) for start in range(0, len(blocks), size)]


def output_moments(output: np.ndarray, heads: int) -> list[np.ndarray]:
    """W_h^T W_h for each head's columns of the output projection (d, heads * b): `heads` matrices (b, b)."""
    return [part.T @ part for part in np.split(output.astype(np.float64), heads, axis=1)]


def energy(rows: np.ndarray, inputs: np.ndarray, blocks: list[np.ndarray]) -> float:
    """trace(B A M A^T) for rows A (n, d), M = `inputs` (d, d) and B block diagonal; 1 where there is none to compare with.

    A block is (b, b), or (b,) if it is itself diagonal, and so is M.
    """
    parts = np.split(rows, np.cumsum([len(block) for block in blocks])[:-1])
    total = sum(
        float(np.sum(_times(block, part) * times(part, inputs))) for part, block in zip(parts, blocks, strict=True)
    )
    return total if total >= np.finfo(float).tiny else 1.0


def times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows (n, d) times a matrix (d, m), or a diagonal one (d,)."""
    return rows * matrix if matrix.ndim == 1 else rows @ matrix


def _times(block: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return block[:, None] * rows if block.ndim == 1 else block @ rows


def blocks_together(*blocks: np.ndarray) -> np.ndarray:
    """Square matrices as the diagonal blocks of one."""
    sizes = [len(block) for block in blocks]
    result, start = np.zeros((sum(sizes),) * 2), 0
    for size, block in zip(sizes, blocks, strict=True):
        result[start : start + size, start : start + size] = block
        start += size
    return result
