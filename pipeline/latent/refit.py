"""Refit queries and values once the cache is chosen: least squares on the source's own attention.

The cache of the sampled tokens being given, scores are linear in the maps from queries to cache. They minimise

    sum over queries m and keys n of p_mn (s'_mn - s_mn - mean_n)^2

where p are the source's attention probabilities, mean_n is the error's mean under them, as a softmax does not see what
all keys share: to second order twice the KL divergence between old and new attention. Conjugate gradients on the normal
equations (Hestenes and Stiefel, 1952) with both sides whitened start at the maps of the moments, and end early;
a ridge draws to the start. So what few samples do not determine stays where the moments put it.

Then the maps from what a head attends to now, its latents mixed by the new probabilities, to what the source's head
gives on: plain least squares, with a ridge that counts as if a few tokens had been seen alone.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.latent.rotary import rotate
from pipeline.latent.scores import SampledAttention, rotate_at
from pipeline.latent.weights import LatentWeights

ITERATIONS = 6
RIDGE = 0.2  # of the whitened problem, whose eigenvalues are about 1
SMALLEST = 1e-4  # eigenvalue, of the largest, that is still whitened
VALUE_RIDGE = 0.02  # single tokens' share of the moments of mixtures
CONVERGED = 1e-9  # of the gradient's square: what single precision can tell
NEGLIGIBLE = 1e-8  # error, of the scores' variance, that is left alone


@dataclass
class HeadProblem:
    """One head's least squares. Scores and what is made of them are lists, an array (chunks, queries, keys) a block.

    queries: (chunks, m, b); cache: (chunks, n, rank + 2 pairs), rotated; weights: blocks, 1 in sum for each query
    blocks: as in `SampledAttention`; angles: (m, pairs), by which a query is rotated
    """

    queries: np.ndarray
    cache: np.ndarray
    weights: list[np.ndarray]
    blocks: list[tuple[slice, int]]
    angles: np.ndarray
    rank: int

    def scores(self, maps: np.ndarray) -> list[np.ndarray]:
        """Scores of `maps` (b, rank + 2 pairs)."""
        mapped = self.queries @ maps
        mapped[..., self.rank :] = rotate(mapped[..., self.rank :], self.angles)
        keys = self.cache.transpose(0, 2, 1)
        return [mapped[:, run] @ keys[..., :seen] for run, seen in self.blocks]

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
        keys = np.concatenate(
            [part @ self.cache[:, :seen] for part, (_, seen) in zip(weighed, self.blocks, strict=True)], axis=1
        )
        keys[..., self.rank :] = rotate(keys[..., self.rank :], -self.angles)
        return np.tensordot(self.queries, keys, axes=((0, 1), (0, 1)))


def refit(weights: LatentWeights, attention: SampledAttention) -> tuple[float, float]:
    """Change `weights`' maps of queries and values, head by head, to those that fit the source's attention best.

    Returns the weighted error before and after, as shares of the scores' weighted variance.
    """
    rank, pairs = len(weights.latent), len(weights.rotary_key) // 2
    turning = attention.frequencies[:pairs]
    plain = attention.inputs @ np.vstack([weights.latent, weights.rotary_key]).astype(np.float32).T
    cache = plain.copy()
    cache[..., rank:] = rotate_at(plain[..., rank:], np.arange(plain.shape[1]), turning)
    right = _cache_whitening(plain, rank)
    angles = attention.positions[:, None] * turning
    latents = plain[..., :rank]
    alone = np.tensordot(latents, latents, axes=((0, 1), (0, 1))) / latents[..., 0].size
    before = after = total = 0.0
    for head in range(len(attention.q)):
        target = attention.scores(head)
        probabilities = attention.probabilities(target)
        problem = HeadProblem(attention.queries(head), cache, probabilities, attention.blocks, angles, rank)
        moment = np.tensordot(problem.queries, problem.queries, axes=((0, 1), (0, 1)))
        left = _inverse_root(moment / problem.queries[..., 0].size)
        maps = np.hstack([weights.latent_query[head], weights.rotary_query[head]]).astype(np.float32)
        residual = _difference(target, problem.scores(maps))
        variance, error = problem.objective(target), problem.objective(residual)
        total, before = total + variance, before + error
        if error > NEGLIGIBLE * variance:
            maps = maps + _descend(problem, residual, left, right)
            error = problem.objective(_difference(target, problem.scores(maps)))
            weights.latent_query[head], weights.rotary_query[head] = np.split(maps.astype(np.float64), [rank], axis=1)
        mixed = attention.mix(attention.probabilities(problem.scores(maps)), latents)
        wanted = attention.mix(probabilities, attention.inputs @ attention.v[head // attention.group].T)
        weights.value[head] += _value_change(wanted, mixed, weights.value[head], alone)
        after += error
    return before / max(total, np.finfo(float).tiny), after / max(total, np.finfo(float).tiny)


def _value_change(wanted: np.ndarray, mixed: np.ndarray, value: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """The change of a head's value map, (b, rank), that fits `wanted` (n, b) to `mixed` (n, rank) latents.

    alone: (rank, rank), the second moment of single tokens' latents, on which `value` is the best there is
    """
    errors = wanted.astype(np.float64) - mixed @ value.T
    moment = mixed.T.astype(np.float64) @ mixed / len(mixed)
    floor = np.finfo(np.float32).eps * float(np.trace(alone)) + np.finfo(np.float32).tiny
    ridge = VALUE_RIDGE * alone + floor * np.eye(len(alone))
    return np.asarray(np.linalg.solve(moment + ridge, mixed.T @ errors / len(mixed)).T)


def _difference(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _descend(problem: HeadProblem, residual: list[np.ndarray], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The change of the maps that conjugate gradients find for `residual`, from zero."""
    ridge = np.float32(RIDGE * problem.queries[..., 0].size)
    change = np.zeros((len(left), len(right)), np.float32)
    gradient = left @ problem.gradient(problem.weigh([part.copy() for part in residual])) @ right
    direction, size = gradient.copy(), float(np.vdot(gradient, gradient))
    enough = CONVERGED * size
    for _ in range(ITERATIONS):
        if size <= enough:
            break
        weighed = problem.weigh(problem.scores(left @ direction @ right))
        image = left @ problem.gradient(weighed) @ right + ridge * direction
        length = np.float32(size / float(np.vdot(direction, image)))
        change += length * direction
        gradient = gradient - length * image
        size, before = float(np.vdot(gradient, gradient)), size
        direction = gradient + np.float32(size / before) * direction
    return left @ change @ right


def _cache_whitening(plain: np.ndarray, rank: int) -> np.ndarray:
    """(rank + 2 pairs) squared: whitens the latent, and scales each rotated pair alike so that rotation commutes."""
    count = plain.shape[0] * plain.shape[1]
    moment = np.tensordot(plain, plain, axes=((0, 1), (0, 1))) / count
    result = np.zeros_like(moment)
    result[:rank, :rank] = _inverse_root(moment[:rank, :rank])
    energy = np.repeat(np.diag(moment)[rank:].reshape(-1, 2).mean(axis=1), 2)
    floor = SMALLEST * float(energy.max()) + np.finfo(np.float32).tiny
    result[range(rank, len(moment)), range(rank, len(moment))] = 1 / np.sqrt(energy + floor)
    return result


def _inverse_root(moment: np.ndarray) -> np.ndarray:
    """The symmetric inverse square root of a moment matrix, its smallest eigenvalues lifted, float32."""
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    largest = float(values[-1]) + np.finfo(float).tiny
    return ((vectors / np.sqrt(np.maximum(values, 0) + SMALLEST * largest)) @ vectors.T).astype(np.float32)
