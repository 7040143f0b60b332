"""Attention scores of the source over sampled inputs, and how much an error of each counts."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.latent.rotary import rotate
from pipeline.latent.weights import LatentWeights

QUERIES_APART = 4
QUERIES_TOGETHER = 16


@dataclass(frozen=True)
class SampledAttention:
    """One layer of the source over sampled tokens.

    inputs: float32 (chunks, n, d); q: (heads, b, d); k and v: (kv_heads, b, d), float32, neighbours rotated together
    frequencies: (b / 2,), radians a position
    apart: one token in so many is a query; all are keys
    """

    inputs: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    frequencies: np.ndarray
    apart: int = QUERIES_APART

    @property
    def group(self) -> int:
        """Query heads of one key/value head."""
        return len(self.q) // len(self.k)

    @cached_property
    def positions(self) -> np.ndarray:
        """The positions of the queries, (m,)."""
        return np.arange(self.apart - 1, self.inputs.shape[1], self.apart)

    @cached_property
    def blocks(self) -> list[tuple[slice, int]]:
        """Runs of queries, and how many keys the last of each sees: no more are computed."""
        starts = range(0, len(self.positions), QUERIES_TOGETHER)
        runs = [slice(start, min(start + QUERIES_TOGETHER, len(self.positions))) for start in starts]
        return [(run, int(self.positions[run.stop - 1]) + 1) for run in runs]

    def queries(self, head: int) -> np.ndarray:
        """A head's queries before rotation, (chunks, m, b)."""
        return self.inputs[:, self.positions] @ self.q[head].T

    def scores(self, head: int) -> list[np.ndarray]:
        """Scores before they are scaled, for each block (chunks, queries, keys), also where they are not seen."""
        keys = self.inputs @ self.k[head // self.group].T
        keys = rotate_at(keys, np.arange(keys.shape[1]), self.frequencies).transpose(0, 2, 1)
        queries = rotate_at(self.queries(head), self.positions, self.frequencies)
        return [queries[:, run] @ keys[..., :seen] for run, seen in self.blocks]

    def probabilities(self, scores: list[np.ndarray]) -> list[np.ndarray]:
        """Attention probabilities of `scores`, block by block; 0 where a key is not seen."""
        result = []
        for (run, count), values in zip(self.blocks, scores, strict=True):
            seen = np.where(self._causal(run, count), values / np.float32(np.sqrt(self.q.shape[1])), -np.inf)
            seen = np.exp(seen - seen.max(axis=2, keepdims=True))
            result.append(seen / seen.sum(axis=2, keepdims=True))
        return result

    def mix(self, probabilities: list[np.ndarray], values: np.ndarray) -> np.ndarray:
        """What queries attend to, (chunks * m, columns), of `values` (chunks, n, columns)."""
        parts = [p @ values[:, :seen] for p, (_, seen) in zip(probabilities, self.blocks, strict=True)]
        return np.concatenate(parts, axis=1).reshape(-1, values.shape[2])

    def distances(self, probabilities: list[np.ndarray]) -> np.ndarray:
        """How much an error of a score counts at each distance between query and key, (n,): the sum of p (1 - p).

        That is the derivative of a probability by its score. The first token is left out: it is where attention rests
        that is not needed anywhere, at whatever distance.
        """
        result = np.zeros(self.inputs.shape[1])
        for (run, count), p in zip(self.blocks, probabilities, strict=True):
            weights = np.einsum("cmn,cmn->mn", p, 1 - p)
            weights[:, 0] = 0
            apart, causal = self.positions[run, None] - np.arange(count), self._causal(run, count)
            result += np.bincount(apart[causal], weights[causal], len(result))
        return result

    def _causal(self, run: slice, count: int) -> np.ndarray:
        return np.arange(count) <= self.positions[run, None]


def rotate_at(values: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Rotate `values` (..., n, 2 pairs) as RoPE does at `positions` (n,)."""
    return rotate(values, positions[:, None] * frequencies)


@dataclass(frozen=True)
class LatentScores:
    """Scores over what sampled tokens cache as latent attention.

    cache: float32 (chunks, n, rank + 2 pairs), its last 2 pairs columns rotated; blocks: as in `SampledAttention`
    angles: (m, pairs), by which a query is rotated
    """

    cache: np.ndarray
    rank: int
    blocks: list[tuple[slice, int]]
    angles: np.ndarray

    def scores(self, queries: np.ndarray, maps: np.ndarray) -> list[np.ndarray]:
        """Scores, for each block (chunks, queries, keys), of `queries` (chunks, m, b) by `maps` (b, rank + 2 pairs)."""
        mapped = queries @ maps
        mapped[..., self.rank :] = rotate(mapped[..., self.rank :], self.angles)
        keys = self.cache.transpose(0, 2, 1)
        return [mapped[:, run] @ keys[..., :seen] for run, seen in self.blocks]


def latent_scores(weights: LatentWeights, attention: SampledAttention) -> LatentScores:
    """What the sampled tokens of `attention` cache under `weights`."""
    rank, turning = len(weights.latent), weights.turning
    cache = attention.inputs @ np.vstack([weights.latent, weights.rotary_key]).astype(np.float32).T
    cache[..., rank:] = rotate_at(cache[..., rank:], np.arange(cache.shape[1]), turning)
    return LatentScores(cache, rank, attention.blocks, attention.positions[:, None] * turning)
