"""Symmetric eigenpairs against NumPy's, and that other threads go on meanwhile."""

import threading

import numpy as np
import pytest

from pipeline.decompose import lapack
from pipeline.decompose.lapack import symmetric_eigenpairs


def symmetric(n: int, dtype: type) -> np.ndarray:
    rows = np.random.default_rng(n).standard_normal((n, n))
    return (rows + rows.T).astype(dtype)


@pytest.fixture(params=["published", "not published"])
def routines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "not published":  # with these arguments
        monkeypatch.setattr(lapack, "SIGNATURE", "void (char *)")
    lapack._routine.cache_clear()


@pytest.mark.usefixtures("routines")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 2, 33, 200])
def test_eigenpairs_are_those_of_numpy(n: int, dtype: type) -> None:
    matrix = symmetric(n, dtype)
    kept = matrix.copy()
    values, vectors = symmetric_eigenpairs(matrix)
    assert values.dtype == vectors.dtype == dtype
    assert np.array_equal(matrix, kept)
    tolerance = 100 * n * np.finfo(dtype).eps
    assert np.allclose(values, np.linalg.eigvalsh(matrix.astype(np.float64)), atol=tolerance)
    assert np.allclose(vectors.T @ vectors, np.eye(n), atol=tolerance)
    assert np.allclose(matrix @ vectors, vectors * values, atol=tolerance)


@pytest.mark.usefixtures("routines")
def test_a_matrix_may_be_overwritten() -> None:
    matrix = symmetric(50, np.float32)
    expected = symmetric_eigenpairs(matrix)
    for order in "CF":
        found = symmetric_eigenpairs(np.array(matrix, order=order), overwrite=True)  # type: ignore[call-overload]
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_this_scipy_publishes_what_is_called() -> None:
    lapack._routine.cache_clear()
    assert all(lapack._routine(name) for name in lapack.ROUTINES.values())


def test_other_threads_go_on() -> None:
    matrix, begun, ended = symmetric(1500, np.float32), threading.Event(), threading.Event()

    def decompose() -> None:
        begun.set()
        symmetric_eigenpairs(matrix)
        ended.set()

    worker = threading.Thread(target=decompose)
    worker.start()
    begun.wait()
    turns = 0
    while not ended.wait(0.001):
        turns += 1
    worker.join()
    assert turns > 30  # with the lock held it is a few
