"""Symmetric eigenpairs and products with triangles against NumPy's, and that other threads go on meanwhile."""

import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from pipeline.decompose import lapack
from pipeline.decompose.lapack import symmetric_eigenpairs, times_triangle

pytestmark = pytest.mark.numerical


def symmetric(n: int, dtype: type) -> np.ndarray:
    rows = np.random.default_rng(n).standard_normal((n, n))
    return (rows + rows.T).astype(dtype)


@pytest.fixture(params=["published", "not published"])
def routines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "not published":  # with these arguments
        others = {name: (module, "void (char *)") for name, (module, _) in lapack.PUBLISHED.items()}
        monkeypatch.setattr(lapack, "PUBLISHED", others)
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
        for mine, theirs in zip(found, expected, strict=True):
            assert np.allclose(np.abs(mine), np.abs(theirs), atol=1e-3)  # a vector's sign is anybody's


@pytest.mark.usefixtures("routines")
@pytest.mark.parametrize(("n", "d"), [(0, 5), (3, 0), (1, 1), (7, 40), (40, 7)])
def test_products_with_triangles_are_those_of_numpy(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    root = np.linalg.cholesky(np.eye(d) + np.cov(rng.standard_normal((d, 2 * d + 2))).reshape(d, d))
    for rows in (rng.standard_normal((n, d)), rng.standard_normal((n, d)).astype(np.float32), rng.random((d, n)).T):
        kept = rows.copy()
        assert np.allclose(times_triangle(rows, root), rows.astype(np.float64) @ root, atol=1e-12)
        assert np.allclose(times_triangle(rows, root, inverse=True) @ root, rows, atol=1e-12)
        assert np.array_equal(rows, kept)


def test_this_scipy_publishes_what_is_called() -> None:
    lapack._routine.cache_clear()
    assert all(lapack._routine(name) for name in lapack.PUBLISHED)


def test_other_threads_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, during, routine, ended = 0, 0, lapack._routine("ssyevd"), threading.Event()

    def counting(*arguments: Any) -> None:
        nonlocal during
        before = turns
        assert routine
        routine(*arguments)
        during = turns - before

    def decompose() -> None:
        symmetric_eigenpairs(symmetric(1000, np.float32))
        ended.set()

    monkeypatch.setattr(lapack, "_routine", lambda name: counting)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # nobody is made to hand over the lock: a turn is one that LAPACK gave
    try:
        worker = threading.Thread(target=decompose)
        worker.start()
        while not ended.is_set():
            turns += 1
            time.sleep(0)
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert during > 0
