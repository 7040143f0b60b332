"""What latent attention is made of in one layer, before it is written."""

from dataclasses import dataclass

import numpy as np


@dataclass
class LatentWeights:
    """One layer, float64, for inputs x (d,) and the source's own queries q_h (b,) of each of `heads` heads.

    Token n caches `latent` x and, rotated, `rotary_key` x. Head h's score is
    (q_h latent_query_h) . latent x + rotated (q_h rotary_query_h) . rotated (rotary_key x), not yet scaled; its value
    is value_h latent x. Neighbouring numbers (2 i, 2 i + 1) of the rotary parts make a pair.

    latent: (rank, d); rotary_key: (2 pairs, d); turning: (pairs,), by how many radians a token each is rotated
    latent_query: (heads, b, rank); rotary_query: (heads, b, 2 pairs); value: (heads, b, rank)
    """

    latent: np.ndarray
    rotary_key: np.ndarray
    latent_query: np.ndarray
    rotary_query: np.ndarray
    value: np.ndarray
    turning: np.ndarray

    def query_maps(self, head: int) -> np.ndarray:
        """Both maps of a head's query, side by side as a token's cache is: float32 (b, rank + 2 pairs)."""
        return np.hstack([self.latent_query[head], self.rotary_query[head]]).astype(np.float32)

    def set_query_maps(self, head: int, maps: np.ndarray) -> None:
        self.latent_query[head], self.rotary_query[head] = np.split(maps.astype(np.float64), [len(self.latent)], axis=1)
