"""Fewer features of each head's query for the latent: what its scores with the latent lose least by.

A head's score with the latent is q N z, N being `latent_query`. N = R^-1 (R N S) S^-1, with R and S the roots of the
second moments of q and of the latent z; the best N of lower rank keeps the largest singular values of R N S (Eckart and
Young). So q reads m numbers in place of b, and a matrix of m rows makes queries of the latent of them. A rotated query
takes all of q: RoPE stands between it and its keys.
"""

import numpy as np

from pipeline.latent.least_squares import inverse_root
from pipeline.latent.weights import LatentWeights


def narrow_queries(
    weights: LatentWeights, queries: np.ndarray, inputs: np.ndarray, features: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each head's rows that make `features` numbers of an input, (heads, m, d), and what makes the latent's query of
    them, (heads, m, rank); with as many as q has, they are `queries` and `weights.latent_query` themselves.

    queries: the source's q, float64 (heads, b, d); inputs: the second moment of what q and k read, (d, d)
    """
    if features == queries.shape[1]:
        return queries, weights.latent_query
    latents = inverse_root(weights.latent @ inputs @ weights.latent.T).astype(np.float64)
    rows, maps = [], []
    for query, onto in zip(queries, weights.latent_query, strict=True):
        whitening = inverse_root(query @ inputs @ query.T).astype(np.float64)
        directions = np.linalg.svd(np.linalg.solve(whitening, onto) @ np.linalg.inv(latents))[0][:, :features]
        rows.append(directions.T @ whitening @ query)
        maps.append(directions.T @ np.linalg.solve(whitening, onto))
    return np.stack(rows), np.stack(maps)
