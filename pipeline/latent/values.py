"""Refit what heads give on once their new attention is known: least squares on the attention block's whole output.

Head h mixes the latents of what it attends to, m_h, and adds W_h V_h m_h to the output, W_h being its columns of the
output projection. All V_h together minimise

    mean | y - sum_h W_h V_h m_h |^2  +  ridge sum_h tr(W_h D_h S D_h^T W_h^T)

where y is the source's output, D_h the change of V_h, and S the second moment of single tokens' latents: as if a few
had been seen alone, for which the maps of the moments are best. So one head makes up for another's errors.
"""

from dataclasses import replace

import numpy as np

from pipeline.latent.least_squares import conjugate_gradients, inverse_root
from pipeline.latent.scores import SampledAttention, latent_scores
from pipeline.latent.weights import LatentWeights

MIXTURES_APART = 2
RIDGE = 0.02
ITERATIONS = 12


def refit_values(weights: LatentWeights, attention: SampledAttention, output: np.ndarray) -> None:
    """Change `weights`' maps of values to those with which the source's output is met best.

    `output` is the source's output projection by head, float32 (heads, d, b).
    """
    attention = replace(attention, apart=MIXTURES_APART)  # outputs are more numbers to fit than scores
    latent = latent_scores(weights, attention)
    latents = latent.cache[..., : latent.rank]
    alone = np.tensordot(latents, latents, axes=((0, 1), (0, 1))) / latents[..., 0].size
    mixtures = np.empty((len(output), len(latents) * len(attention.positions), latent.rank), np.float32)
    wanted = np.zeros((mixtures.shape[1], output.shape[1]), np.float32)
    for head, projection in enumerate(output):
        values = attention.inputs @ attention.v[head // attention.group].T
        wanted += attention.mix(attention.probabilities(attention.scores(head)), values) @ projection.T
        scores = latent.scores(attention.queries(head), weights.query_maps(head))
        mixtures[head] = attention.mix(attention.probabilities(scores), latents)
    weights.value += best_change(weights.value.astype(np.float32), mixtures, alone, output, wanted)


def best_change(
    values: np.ndarray, mixtures: np.ndarray, alone: np.ndarray, output: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """All D_h, float32 (heads, b, rank), for V = `values`.

    mixtures: m, float32 (heads, n, rank); alone: S, (rank, rank); output: W, float32 (heads, d, b)
    wanted: y, float32 (n, d)
    """
    heads, n, _ = mixtures.shape
    joined = np.concatenate(list(output), axis=1)
    together = joined.T @ joined
    ridge = np.float32(RIDGE) * alone
    left = np.stack([inverse_root(part.T @ part) for part in output])
    right = np.stack([inverse_root(part.T @ part / np.float32(n) + ridge) for part in mixtures])

    def given(values: np.ndarray) -> np.ndarray:
        """V m, (n, heads b)."""
        return (mixtures @ values.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(n, -1)

    def gradient(errors: np.ndarray) -> np.ndarray:
        """Of half the mean square by V, for W^T times the output's errors, (n, heads b)."""
        return errors.reshape(n, heads, -1).transpose(1, 2, 0) @ mixtures / np.float32(n)

    def curvature(change: np.ndarray) -> np.ndarray:
        return left @ gradient(given(left @ change @ right) @ together) @ right + change @ right @ ridge @ right

    residual = wanted @ joined - given(values) @ together
    return left @ conjugate_gradients(curvature, left @ gradient(residual) @ right, ITERATIONS) @ right
