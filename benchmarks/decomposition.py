"""Reconstruction of TinyLlama-sized projections against scikit-learn's PCA(svd_solver="full").

The matrices are random with the spectrum of a real model: the eigenvalues of the embedded model's layer 10, stretched.
Those of LAYERS layers are decomposed as `surgery operate` does, several at once with a thread each; scikit-learn takes
one after the other with all its threads.
"""

from collections.abc import Iterator

import numpy as np
from sklearn.decomposition import PCA

from benchmarks.timing import in_turn, spread
from native.model import default_threads
from pipeline.decompose.principal_components import centre, gram, principal_components
from pipeline.inputs.models import EMBEDDED_NAME, open_model
from pipeline.layers import AttentionLayers
from pipeline.parallel import side_by_side

LAYERS = 4
SHAPES = {"q": (2048, 2048), "kv": (512, 2048)}
SWEEP = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9]


def realistic_matrix(group: str, rng: np.random.Generator) -> np.ndarray:
    """Random rows, float32 of TinyLlama's shape, whose spectrum is that of the embedded model's layer 10."""
    model = open_model(EMBEDDED_NAME)
    stack = AttentionLayers(model)[10].stacked(group)
    spectrum = np.linalg.eigvalsh(gram(centre(stack, "keep")[0]))[::-1]
    n, d = SHAPES[group]
    stretched = np.interp(np.linspace(0, len(spectrum) - 1, n), np.arange(len(spectrum)), spectrum)
    left, right = (np.linalg.qr(rng.standard_normal((side, n)))[0] for side in (n, d))
    return ((left * np.sqrt(np.clip(stretched, 0, None))) @ right.T).astype(np.float32)


def reconstruct(matrix: np.ndarray, threshold: float) -> np.ndarray:
    components = principal_components(matrix, share=threshold)
    return components.reconstruct(components.rank_for(threshold))


def reconstruct_by_scikit_learn(matrix: np.ndarray, threshold: float) -> np.ndarray:
    pca = PCA(threshold, svd_solver="full")
    return pca.inverse_transform(pca.fit_transform(matrix))


def sweep(matrix: np.ndarray) -> Iterator[np.ndarray]:
    components = principal_components(matrix, share=SWEEP[-1])
    return components.reconstructions(map(components.rank_for, SWEEP))


def run() -> None:
    rng = np.random.default_rng(0)
    matrices = [realistic_matrix(group, rng) for group in SHAPES]
    layers = matrices * LAYERS
    threads = default_threads()
    for threshold in (0.3, 0.9):

        def ours(threshold: float = threshold) -> list[np.ndarray]:
            return list(side_by_side(lambda matrix: reconstruct(matrix, threshold), layers, threads))

        def theirs(threshold: float = threshold) -> list[np.ndarray]:
            return [reconstruct_by_scikit_learn(matrix, threshold) for matrix in layers]

        mine, other, ratios = in_turn(ours, theirs, rounds=3)
        pairs = zip(ours(), theirs(), strict=True)
        difference = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
        print(
            f"q 2048x2048 and k+v 512x2048 of {LAYERS} layers, threshold {threshold}: {mine:.2f} s, scikit-learn {other:.2f} s;"
        )
        print(f"    {spread(ratios)} times as fast; largest relative difference {difference:.1e}")

    def one_threshold() -> None:
        list(side_by_side(lambda matrix: reconstruct(matrix, SWEEP[-1]), layers, threads))

    def ten_thresholds() -> None:
        list(side_by_side(lambda matrix: [None for _ in sweep(matrix)], layers, threads))

    one, ten, ratios = in_turn(one_threshold, ten_thresholds, rounds=3)
    print(f"ten thresholds up to {SWEEP[-1]}: {ten:.3f} s, {spread(ratios)} times the {one:.3f} s of one")
