"""PCA of rows against scikit-learn, over shapes, dtypes and mean modes."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from pipeline.decompose.principal_components import centre, explained_variance, principal_components, ranks_reaching
from tests.scikit_learn import reference

pytestmark = pytest.mark.numerical

SHAPES = {"tall": (90, 40), "wide": (40, 90), "square": (64, 64), "rank-deficient": (60, 80), "large": (700, 720)}
TOLERANCE: dict[type, float] = {np.float32: 2e-5, np.float64: 1e-10}


def matrix(kind: str, dtype: type) -> np.ndarray:
    """Rows with a decaying spectrum and a mean far from zero."""
    rng = np.random.default_rng(len(kind))
    n, d = SHAPES[kind]
    rank = 12 if kind == "rank-deficient" else min(n, d)
    left = rng.standard_normal((n, rank)) * np.exp(-np.arange(rank) / (0.3 * rank))
    return (left @ rng.standard_normal((rank, d)) + 3 * rng.standard_normal(d)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", ["keep", "none", "drop"])
@pytest.mark.parametrize("kind", SHAPES)
def test_reconstruction_is_scikit_learns(kind: str, mean: str, dtype: type) -> None:
    rows = matrix(kind, dtype)
    components = principal_components(rows, mean)
    for rank in (1, 5, 11):
        rebuilt = components.reconstruct(rank)
        assert rebuilt.dtype == dtype
        expected = reference(rows.astype(np.float64), rank, mean)
        assert np.linalg.norm(rebuilt - expected) < TOLERANCE[dtype] * np.linalg.norm(rows)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.9, 0.99])
def test_threshold_needs_scikit_learns_rank(kind: str, threshold: float) -> None:
    rows = matrix(kind, np.float64)
    pca = PCA(threshold, svd_solver="full").fit(rows)
    components = principal_components(rows)
    rank = components.rank_for(threshold)
    assert rank == pca.n_components_
    assert components.explained(rank) == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-9)
    assert components.explained(rank) >= threshold > components.explained(rank - 1)
    shares = explained_variance(centre(rows, "keep")[0])
    assert ranks_reaching(shares, [threshold]) == [rank]
    np.testing.assert_allclose(shares[:rank], pca.explained_variance_ratio_.cumsum(), atol=1e-9)


def test_threshold_one_needs_every_component_and_is_exact() -> None:
    rows = matrix("wide", np.float64)
    components = principal_components(rows)
    assert components.rank_for(1) == components.full_rank == 40
    assert np.allclose(components.reconstruct(40), rows, atol=1e-10)
    assert components.explained(40) == 1


def test_sweep_equals_single_reconstructions() -> None:
    components = principal_components(matrix("tall", np.float64))
    ranks = [0, 1, 7, 7, 30]
    for rank, rebuilt in zip(ranks, components.reconstructions(ranks), strict=True):
        assert np.allclose(rebuilt, components.reconstruct(rank), atol=1e-12)


@pytest.mark.parametrize("kind", ["tall", "wide"])
def test_permuted_rows_give_permuted_results(kind: str) -> None:
    rows = matrix(kind, np.float64)
    order = np.random.default_rng(1).permutation(len(rows))
    plain, permuted = principal_components(rows), principal_components(rows[order])
    rank = plain.rank_for(0.8)
    assert permuted.rank_for(0.8) == rank
    assert np.allclose(permuted.reconstruct(rank), plain.reconstruct(rank)[order], atol=1e-9)


def test_equal_rows_have_no_variance() -> None:
    rows = np.tile(np.arange(6.0), (4, 1))
    components = principal_components(rows)
    assert components.rank_for(0.9) == 0
    assert components.explained(0) == 1
    assert np.array_equal(components.reconstruct(0), rows)
    assert not principal_components(rows, "drop").reconstruct(0).any()
