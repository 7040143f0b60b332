"""Refit the queries once the cache is chosen: least squares on the source's own attention.

The cache of the sampled tokens being given, scores are linear in the maps from queries to cache. They minimise

    sum over queries m and keys n of p_mn (s'_mn - s_mn - mean_n)^2

where p are the source's attention probabilities, mean_n is the error's mean under them, as a softmax does not see what
all keys share: to second order twice the KL divergence between old and new attention. Conjugate gradients on the normal
equations with both sides whitened start at the maps of the moments, and end early; a ridge draws to the start. So what
few samples do not determine stays where the moments put it.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.latent.least_squares import SMALLEST, conjugate_gradients, inverse_root
from pipeline.latent.rotary import rotate
from pipeline.latent.scores import LatentScores, SampledAttention, latent_scores
from pipeline.latent.weights import LatentWeights

ITERATIONS = 6
RIDGE = 0.2  # of the whitened problem, whose eigenvalues are about 1
NEGLIGIBLE = 1e-8  # error, of the scores' variance, that is left alone


@dataclass
class HeadProblem:
    """One head's least squares. Scores and what is made of them are lists, an array (chunks, queries, keys) a block.

    queries: (chunks, m, b); weights: blocks, 1 in sum for each query
    """

    latent: LatentScores
    queries: np.ndarray
    weights: list[np.ndarray]

    def scores(self, maps: np.ndarray) -> list[np.ndarray]:
        """Scores of `maps` (b, rank + 2 pairs)."""
        return self.latent.scores(self.queries, maps)

    def weigh(self, errors: list[np.ndarray]) -> list[np.ndarray]:
        """The gradient of half the objective by the scores, in the place of `errors`."""
        for weights, error in zip(self.weights, errors, strict=True):
            error -= np.einsum("cmn,cmn->cm", weights, error)[..., None]
            error *= weights
        return errors

    def objective(self, errors: list[np.ndarray]) -> float:
        """The weighted square of `errors`, which are left alone."""
        weighed = self.weigh([error.copy() for error in errors])
        return sum(float(np.vdot(a, b)) for a, b in zip(errors, weighed, strict=True))

    def gradient(self, weighed: list[np.ndarray]) -> np.ndarray:
        """The gradient by the maps, (b, rank + 2 pairs)."""
        latent = self.latent
        parts = [part @ latent.cache[:, :seen] for part, (_, seen) in zip(weighed, latent.blocks, strict=True)]
        keys = np.concatenate(parts, axis=1)
        keys[..., latent.rank :] = rotate(keys[..., latent.rank :], -latent.angles)
        return np.tensordot(self.queries, keys, axes=((0, 1), (0, 1)))


def refit_queries(weights: LatentWeights, attention: SampledAttention) -> tuple[float, float]:
    """Change `weights`' maps of queries, head by head, to those that fit the source's scores best.

    Returns the weighted error before and after, as shares of the scores' weighted variance.
    """
    latent = latent_scores(weights, attention)
    right = _cache_whitening(latent)
    before = after = total = 0.0
    for head in range(len(attention.q)):
        target = attention.scores(head)
        problem = HeadProblem(latent, attention.queries(head), attention.probabilities(target))
        moment = np.tensordot(problem.queries, problem.queries, axes=((0, 1), (0, 1)))
        left = inverse_root(moment / problem.queries[..., 0].size)
        maps = weights.query_maps(head)
        residual = _difference(target, problem.scores(maps))
        variance, error = problem.objective(target), problem.objective(residual)
        total, before = total + variance, before + error
        if error > NEGLIGIBLE * variance:
            maps = maps + _descend(problem, residual, left, right)
            error = problem.objective(_difference(target, problem.scores(maps)))
            weights.set_query_maps(head, maps)
        after += error
    return before / max(total, np.finfo(float).tiny), after / max(total, np.finfo(float).tiny)


def score_error(weights: LatentWeights, attention: SampledAttention) -> float:
    """The weighted error of `weights`' scores, as a share of the source's scores' weighted variance."""
    latent = latent_scores(weights, attention)
    error = total = 0.0
    for head in range(len(attention.q)):
        target = attention.scores(head)
        problem = HeadProblem(latent, attention.queries(head), attention.probabilities(target))
        total += problem.objective(target)
        error += problem.objective(_difference(target, problem.scores(weights.query_maps(head))))
    return error / max(total, np.finfo(float).tiny)


def _difference(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _descend(problem: HeadProblem, residual: list[np.ndarray], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The change of the maps that a few steps find for `residual`, from zero."""
    ridge = np.float32(RIDGE * problem.queries[..., 0].size)

    def curvature(change: np.ndarray) -> np.ndarray:
        weighed = problem.weigh(problem.scores(left @ change @ right))
        return left @ problem.gradient(weighed) @ right + ridge * change

    gradient = left @ problem.gradient(problem.weigh([part.copy() for part in residual])) @ right
    return left @ conjugate_gradients(curvature, gradient, ITERATIONS) @ right


def _cache_whitening(latent: LatentScores) -> np.ndarray:
    """(rank + 2 pairs) squared: whitens the latent, and scales each rotated pair alike so that rotation commutes."""
    cache, rank = latent.cache, latent.rank
    moment = np.tensordot(cache, cache, axes=((0, 1), (0, 1))) / cache[..., 0].size
    result = np.zeros_like(moment)
    result[:rank, :rank] = inverse_root(moment[:rank, :rank])
    energy = np.repeat(np.diag(moment)[rank:].reshape(-1, 2).mean(axis=1), 2)
    floor = SMALLEST * float(energy.max()) + np.finfo(np.float32).tiny
    result[range(rank, len(moment)), range(rank, len(moment))] = 1 / np.sqrt(energy + floor)
    return result
