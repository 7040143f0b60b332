"""Numbers of a quantised cache that share a scale should all count the same: its error is the same for each.

A block of a quantised type has one scale, so each of its numbers gets noise in proportion to the block's mean square.
Number i, times s_i in the cache and divided by s_i where it is read, then costs sum_i c_i / s_i^2 times
sum_j s_j^2 e_j, where e is its mean square and c what noise of it costs. By Cauchy and Schwarz that is least, and
(sum_i sqrt(c_i e_i))^2, for s_i^2 = sqrt(c_i / e_i). A cache that is not quantised does not notice.
"""

import numpy as np

from pipeline.latent.weights import LatentWeights

SMALLEST = 1e-6  # energy or cost, of the largest, that is still told apart


def equalising_scales(energy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """s, (n,), from the `energy` e and the `cost` c of each number, (n,); the mean of s^2 e is 1."""
    energy = np.maximum(energy, SMALLEST * float(energy.max(initial=0)) + np.finfo(float).tiny)
    cost = np.maximum(cost, SMALLEST * float(cost.max(initial=0)) + np.finfo(float).tiny)
    squares = np.sqrt(cost / energy)
    return np.sqrt(squares / np.mean(squares * energy))


def equalise_rotary(weights: LatentWeights, queries: np.ndarray, inputs: np.ndarray) -> None:
    """Scale each rotated pair of `weights`' keys, and inversely of its queries, which commutes with their rotation.

    queries: the source's q, float64 (heads, b, d); inputs: the second moment of what q and k read, (d, d)
    """
    scales = np.repeat(equalising_scales(*pair_energies(weights.rotary_key, weights.rotary_query, queries, inputs)), 2)
    weights.rotary_key *= scales[:, None]
    weights.rotary_query /= scales


def pair_energies(
    rotary_key: np.ndarray, rotary_query: np.ndarray, queries: np.ndarray, inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares of each rotated pair's numbers in the keys, and summed over heads in the queries, (pairs,) each.

    rotary_key: (2 pairs, d); rotary_query: (heads, b, 2 pairs); queries and inputs as in `equalise_rotary`
    """
    keys = np.einsum("pd,de,pe->p", rotary_key, inputs, rotary_key, optimize=True)
    moments = np.einsum("hbd,de,hce->hbc", queries, inputs, queries, optimize=True)
    reads = np.einsum("hbp,hbc,hcp->p", rotary_query, moments, rotary_query, optimize=True)
    return keys.reshape(-1, 2).mean(axis=1), reads.reshape(-1, 2).mean(axis=1)
