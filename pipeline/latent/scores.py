"""Attention scores of the source over sampled inputs, and how much an error of each counts."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.latent.rotary import rotate

QUERIES_APART = 4  # one token in so many is a query; all are keys


@dataclass(frozen=True)
class SampledAttention:
    """One layer of the source over sampled tokens.

    inputs: float32 (chunks, n, d); q: (heads, b, d) and k: (kv_heads, b, d), float32, neighbours rotated together
    frequencies: (b / 2,), radians a position
    """

    inputs: np.ndarray
    q: np.ndarray
    k: np.ndarray
    frequencies: np.ndarray

    @cached_property
    def positions(self) -> np.ndarray:
        """The positions of the queries, (m,): not 0, which attends to itself alone."""
        return np.arange(QUERIES_APART - 1, self.inputs.shape[1], QUERIES_APART)

    @cached_property
    def causal(self) -> np.ndarray:
        """Whether a query may see a key, bool (m, n)."""
        return np.arange(self.inputs.shape[1]) <= self.positions[:, None]

    def queries(self, head: int) -> np.ndarray:
        """A head's queries before rotation, (chunks, m, b)."""
        return self.inputs[:, self.positions] @ self.q[head].T

    def scores(self, head: int) -> np.ndarray:
        """Scores before they are scaled, (chunks, m, n), also where they are not seen."""
        keys = self.inputs @ self.k[head // (len(self.q) // len(self.k))].T
        return rotate_at(self.queries(head), self.positions, self.frequencies) @ rotate_at(
            keys, np.arange(keys.shape[1]), self.frequencies
        ).transpose(0, 2, 1)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Attention probabilities of `scores`, (chunks, m, n)."""
        seen = np.where(self.causal, scores / np.sqrt(self.q.shape[1]), -np.inf)
        seen = np.exp(seen - seen.max(axis=2, keepdims=True))
        return seen / seen.sum(axis=2, keepdims=True)

    def distances(self, probabilities: np.ndarray) -> np.ndarray:
        """How much an error of a score counts at each distance between query and key, (n,): the sum of p (1 - p).

        That is the derivative of a probability by its score. The first token is left out: it is where attention rests that
        is not needed anywhere, at whatever distance.
        """
        weights = (probabilities * (1 - probabilities)).sum(axis=0)
        weights[:, 0] = 0
        apart = self.positions[:, None] - np.arange(weights.shape[1])
        return np.bincount(apart[self.causal], weights[self.causal], weights.shape[1])


def rotate_at(values: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Rotate `values` (..., n, 2 pairs) as RoPE does at `positions` (n,)."""
    return rotate(values, positions[:, None] * frequencies)
