"""LAPACK's divide and conquer for symmetric matrices, called so that other threads can go on.

SciPy's own wrapper holds Python's lock while LAPACK works: two decompositions side by side would take turns. NumPy's does
not, but works in double precision alone. SciPy also publishes LAPACK's functions for Cython, as C pointers in capsules
(scipy.linalg.cython_lapack), and ctypes releases the lock while it calls one.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.linalg import cython_lapack

ROUTINES = {np.dtype(np.float32): "ssyevd", np.dtype(np.float64): "dsyevd"}
SIGNATURE = "void (char *, char *, int *, {0}, int *, {0}, {0}, int *, int *, int *, int *)"
REAL = "__pyx_t_5scipy_6linalg_13cython_lapack_{0} *"


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


@cache
def _routine(name: str) -> Callable[..., None] | None:
    """What SciPy publishes by this name; None if it takes other arguments than we give it, such as longer integers."""
    find = ctypes.pythonapi.PyCapsule_GetPointer
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    try:
        pointer = find(cython_lapack.__pyx_capi__[name], SIGNATURE.format(REAL.format(name[0])).encode())
    except (KeyError, ValueError):
        return None
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 11)(pointer)
