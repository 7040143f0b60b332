"""What NumPy lacks of LAPACK and BLAS, called so that other threads can go on: for symmetric and triangular matrices.

SciPy's own wrappers hold Python's lock while LAPACK works: two decompositions side by side would take turns. NumPy's do
not, but decompose in double precision alone, and know no triangles. SciPy also publishes these functions for Cython, as
C pointers in capsules (scipy.linalg.cython_lapack and cython_blas), and ctypes releases the lock while it calls one.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

ROUTINES = {np.dtype(np.float32): "ssyevd", np.dtype(np.float64): "dsyevd"}
EIGENPAIRS = "void (char *, char *, int *, {0} *, int *, {0} *, {0} *, int *, int *, int *, int *)"
TRIANGLE = "void (char *, char *, char *, char *, int *, int *, {0} *, {0} *, int *, {0} *, int *)"
PUBLISHED = {
    "ssyevd": (cython_lapack, EIGENPAIRS.format("__pyx_t_5scipy_6linalg_13cython_lapack_s")),
    "dsyevd": (cython_lapack, EIGENPAIRS.format("__pyx_t_5scipy_6linalg_13cython_lapack_d")),
    "dtrmm": (cython_blas, TRIANGLE.format("__pyx_t_5scipy_6linalg_11cython_blas_d")),
    "dtrsm": (cython_blas, TRIANGLE.format("__pyx_t_5scipy_6linalg_11cython_blas_d")),
}


def symmetric_eigenpairs(matrix: np.ndarray, *, overwrite: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues (n,), ascending, and eigenvectors (n, n) of a symmetric float32 or float64 `matrix` (n, n).

    In the precision of `matrix`, which `overwrite` lets the vectors take the place of. Raises LinAlgError when LAPACK
    does not converge. Source: Anderson et al., LAPACK Users' Guide, 1999, xSYEVD, whose workspace these sizes are.
    """
    name = ROUTINES[matrix.dtype]
    routine = _routine(name)
    if routine is None:
        values, vectors = np.linalg.eigh(matrix.astype(np.float64))
        return values.astype(matrix.dtype), vectors.astype(matrix.dtype)
    n = len(matrix)
    vectors = matrix.T if overwrite and matrix.flags.c_contiguous else np.array(matrix, order="F")
    values = np.empty(n, matrix.dtype)
    work, indices = np.empty(1 + 6 * n + 2 * n * n, matrix.dtype), np.empty(3 + 5 * n, np.intc)
    size, leading, status = ctypes.c_int(n), ctypes.c_int(max(n, 1)), ctypes.c_int(0)
    work_size, indices_size = ctypes.c_int(len(work)), ctypes.c_int(len(indices))
    at = ctypes.byref  # Fortran takes numbers by their addresses
    routine(
        b"V", b"L", at(size), vectors.ctypes.data, at(leading), values.ctypes.data, work.ctypes.data, at(work_size),
        indices.ctypes.data, at(indices_size), at(status),
    )  # fmt: skip
    if status.value:
        raise np.linalg.LinAlgError(f"{name}: no convergence, status {status.value}")
    return values, vectors


def times_triangle(rows: np.ndarray, root: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    """rows (n, d) times a lower triangular `root` (d, d), or times its inverse: (n, d), float64.

    In half the time of a product with a whole matrix. Source: Dongarra et al., A set of level 3 basic linear algebra
    subprograms, 1990, xTRMM and xTRSM; arrays by columns, as they take them, are these transposed.
    """
    routine = _routine("dtrsm" if inverse else "dtrmm")
    if routine is None:
        return np.linalg.solve(root.T, rows.T).T if inverse else rows @ root
    result, root = np.array(rows, np.float64, order="C"), np.ascontiguousarray(root, np.float64)
    n, d, one, leading = *map(ctypes.c_int, rows.shape), ctypes.c_double(1), ctypes.c_int(max(len(root), 1))
    at = ctypes.byref
    routine(
        b"L", b"U", b"N", b"N", at(d), at(n), at(one), root.ctypes.data, at(leading), result.ctypes.data, at(leading)
    )
    return result


@cache
def _routine(name: str) -> Callable[..., None] | None:
    """What SciPy publishes by this name; None if it takes other arguments than we give it, such as longer integers."""
    module, signature = PUBLISHED[name]
    find = ctypes.pythonapi.PyCapsule_GetPointer
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    try:
        pointer = find(module.__pyx_capi__[name], signature.encode())
    except (KeyError, ValueError):
        return None
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 11)(pointer)
