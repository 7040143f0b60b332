"""Leading eigenpairs against NumPy's full decomposition, over spectra that make iteration easy, hard or impossible."""

import numpy as np
import pytest

from pipeline.decompose import eigenpairs
from pipeline.decompose.eigenpairs import leading_eigenpairs

pytestmark = pytest.mark.numerical

N = 600
SPECTRA = {
    "exponential": np.exp(-np.arange(N) / 60),
    "power law": (1 + np.arange(N)) ** -1.2,
    "steps": np.repeat([100.0, 10, 1, 0.1], N // 4) + np.linspace(1e-3, 0, N),
    "flat": np.ones(N),
    "one direction": np.r_[1.0, np.full(N - 1, 1e-9)],
    "low rank": np.r_[np.linspace(2, 1, 20), np.zeros(N - 20)],
    "zero": np.zeros(N),
}


def gram_matrix(spectrum: str) -> np.ndarray:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    return ((basis * SPECTRA[spectrum]) @ basis.T).astype(np.float32)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_projection_is_that_of_the_full_decomposition(spectrum: str, share: float) -> None:
    matrix = gram_matrix(spectrum)
    exact, vectors = (part[..., ::-1] for part in np.linalg.eigh(matrix.astype(np.float64)))
    values, basis = leading_eigenpairs(matrix, share)
    rank = min(int(np.searchsorted(np.cumsum(exact), share * exact.sum() * (1 - 1e-6))) + 1, N)
    assert len(values) >= rank or not exact.any()
    assert np.all(np.diff(values) <= 0)
    assert values[-1] >= 0
    assert np.allclose(values[:rank], exact[:rank], atol=1e-5 * exact[0])
    if rank < N and exact[rank - 1] - exact[rank] > 1e-3 * exact[0]:  # else the subspace is not unique
        rows = (vectors * np.sqrt(np.clip(exact, 0, None))) @ vectors.T
        mine, reference = (part[:, :rank] @ (part[:, :rank].T @ rows) for part in (basis, vectors))
        assert np.linalg.norm(mine - reference) < 1e-4 * np.linalg.norm(reference)
    assert np.allclose(basis[:, :rank].T @ basis[:, :rank], np.eye(min(rank, basis.shape[1])), atol=1e-4)


def test_a_low_share_is_iterated_and_a_high_one_is_not() -> None:
    matrix = gram_matrix("exponential")
    assert len(leading_eigenpairs(matrix, 0.3)[0]) == N // eigenpairs.BLOCK_SHARE
    assert len(leading_eigenpairs(matrix, 0.95)[0]) == N


@pytest.mark.filterwarnings("error")
def test_eigenvalues_far_apart_are_found_without_a_warning() -> None:
    matrix = gram_matrix("exponential")
    matrix[0, 0] = 1e24
    assert leading_eigenpairs(matrix, 0.5)[0][0] == pytest.approx(1e24)


def test_float64_is_exact() -> None:
    matrix = gram_matrix("exponential").astype(np.float64)
    values, _ = leading_eigenpairs(matrix, 0.3)
    assert np.allclose(values, np.linalg.eigvalsh(matrix)[::-1], atol=1e-12)
