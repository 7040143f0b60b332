"""Quantise the rows of one matrix with the C code that llama.cpp's whole-file quantiser uses: the same bytes."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from native.errors import NativeError
from native.library import ggml_base
from native.model import default_threads

ROWS_PER_TASK = 64


def quantize_rows(values: np.ndarray, kind: int, importance: np.ndarray | None = None) -> np.ndarray:
    """Quantise `values`, float32 (rows, columns), to ggml type number `kind`: uint8 of shape (rows, bytes per row).

    `importance`, float32 (columns,), weighs the columns as an importance matrix does. Raises NativeError for a type
    that needs one and has none.
    """
    library = ggml_base()
    name = library.ggml_type_name(kind).decode().upper()
    if importance is None and library.ggml_quantize_requires_imatrix(kind):
        raise NativeError(f"{name} needs an importance matrix; choose another type, or `outtype` auto")
    rows, columns = values.shape
    values = np.ascontiguousarray(values, np.float32)
    result = np.empty((rows, library.ggml_row_size(kind, columns)), np.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32).ctypes.data_as(floats)

    def quantize_some(start: int) -> None:
        part = values[start : start + ROWS_PER_TASK]
        target = result[start:].ctypes.data_as(ctypes.c_void_p)
        library.ggml_quantize_chunk(kind, part.ctypes.data_as(floats), target, 0, len(part), columns, weights)

    library.ggml_quantize_init(kind)
    with ThreadPoolExecutor(default_threads()) as pool:
        list(pool.map(quantize_some, range(0, rows, ROWS_PER_TASK)))
    return result
