"""RoPE in complex numbers: each pair of a head's features is one, and RoPE multiplies it by exp(i position frequency).

Su et al., RoFormer, 2021. A score is Re sum_f conj(q_f) k_f exp(-i f distance), so at one frequency the keys of all
key/value heads are a complex vector that any unitary matrix may turn if the queries are turned alike
(Meng et al., TransMLA, 2025).
"""

from dataclasses import dataclass

import numpy as np


def as_complex(rows: np.ndarray) -> np.ndarray:
    """Rows (heads, 2 pairs, d) whose neighbours are pairs, as complex rows (heads, pairs, d)."""
    return rows[:, 0::2] + 1j * rows[:, 1::2]


def as_real(rows: np.ndarray) -> np.ndarray:
    """Complex rows (n, d) as rows (2 n, d) whose neighbours are pairs."""
    return np.stack([rows.real, rows.imag], axis=1).reshape(-1, rows.shape[-1])


def multiplication(factors: np.ndarray, sources: np.ndarray, pairs: int) -> np.ndarray:
    """The real matrix (2 pairs, 2 n) that makes of a row q of pairs the n complex numbers q[sources] * factors."""
    matrix = np.zeros((2 * pairs, 2 * len(factors)))
    columns = 2 * np.arange(len(factors))
    rows = 2 * sources
    matrix[rows, columns] = matrix[rows + 1, columns + 1] = factors.real
    matrix[rows, columns + 1] = factors.imag
    matrix[rows + 1, columns] = -factors.imag
    return matrix


def rotate(values: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn the neighbouring pairs of `values` (..., n, 2 pairs) by `angles` (n, pairs) in radians."""
    cosine, sine = np.cos(angles).astype(values.dtype), np.sin(angles).astype(values.dtype)
    first, second = values[..., 0::2], values[..., 1::2]
    result = np.empty_like(values)
    result[..., 0::2] = first * cosine - second * sine
    result[..., 1::2] = first * sine + second * cosine
    return result


@dataclass(frozen=True)
class AlignedKeys:
    """The keys of all key/value heads at each frequency, in principal components, strongest first.

    rows: complex (pairs, kv_heads, d), a component's value is a row times the input
    energies: (pairs, kv_heads), its mean square times that of the queries that meet it
    restore: complex (pairs, kv_heads, kv_heads), head g's key at frequency f is sum_c restore[f, g, c] component c
    """

    rows: np.ndarray
    energies: np.ndarray
    restore: np.ndarray


def align_keys(keys: np.ndarray, query_energy: np.ndarray, inputs: np.ndarray, *, real: bool = False) -> AlignedKeys:
    """Principal components over heads of complex keys (kv_heads, pairs, d), a frequency at a time.

    Each key counts by `query_energy` (kv_heads, pairs), the mean square of the queries that meet it, and by the second
    moment `inputs` (d, d) of what it is a projection of. `real` ones are the best of those that have real and imaginary
    parts alike.
    """
    largest = max(float(query_energy.max()), np.finfo(float).tiny)
    sizes = np.sqrt(np.maximum(query_energy, 1e-12 * largest))
    scaled = keys * sizes[:, :, None]
    moments = np.einsum("gfd,de,hfe->fgh", scaled, inputs, scaled.conj(), optimize=True)
    energies, vectors = np.linalg.eigh(moments.real if real else moments)
    energies, vectors = np.clip(energies[:, ::-1], 0, None), vectors[:, :, ::-1]
    rows = np.einsum("fgc,gfd->fcd", vectors.conj(), scaled)
    return AlignedKeys(rows, energies, vectors / sizes.T[:, :, None])


def mean_turns(distances: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """E[exp(-i f distance)], complex (heads, n), over each head's distances, (heads, n_ctx) weights, for (n,) f.

    The constant c that makes E |exp(-i f distance) - c|^2 least: what is left of a rotation that is not made.
    """
    shares = distances / np.maximum(distances.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return shares @ np.exp(-1j * np.arange(distances.shape[1])[:, None] * frequency)
