"""The llama.cpp library that llama-cpp-python built: its log, and the prototypes that the package lacks.

Written for llama-cpp-python 0.3.36; `check_library` refuses a build whose structures differ.
"""

import ctypes
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llama_cpp

from native.errors import NativeError

LOG_LINES_KEPT = 12
LOG_LEVEL_CONTINUED = 5  # GGML_LOG_LEVEL_CONT: goes on where the line before stopped

LogListener = Callable[[str], None]


class NativeLog:
    """llama.cpp's log: kept away from the terminal, its last lines at hand for an error message."""

    def __init__(self) -> None:
        self.listeners: list[LogListener] = []
        self._lines: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._partial = b""
        self._callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        self._partial = self._partial + text if level == LOG_LEVEL_CONTINUED or self._partial else text
        while b"\n" in self._partial:
            line, self._partial = self._partial.split(b"\n", 1)
            self.add(line.decode("utf-8", errors="replace"))

    def add(self, line: str) -> None:
        if line.strip(" ."):
            self._lines.append(line)
            for listener in self.listeners:
                listener(line)

    def error(self, message: str) -> NativeError:
        """An error that ends with the last lines of the log."""
        return NativeError("\n".join([message, *(f"    llama.cpp: {line}" for line in self._lines)]))


@cache
def native_log() -> NativeLog:
    """The process's log of llama.cpp, installed when first asked for."""
    return NativeLog()


@cache
def ggml_base() -> ctypes.CDLL:
    """libggml-base with the prototypes that are used here."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    candidates = [folder / name for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise NativeError(f"{folder}: no ggml-base library; install llama-cpp-python again")
    library = ctypes.CDLL(str(found))
    floats = ctypes.POINTER(ctypes.c_float)
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        floats,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        floats,
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_type_name.argtypes = [ctypes.c_int]
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_row_size.restype = ctypes.c_size_t
    return library


ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def report_abort(receive: Callable[[str], None]) -> object:
    """Hand the message of a failed assertion to `receive` just before the process ends; keep what is returned."""
    callback = ABORT_CALLBACK(lambda message: receive(message.decode("utf-8", errors="replace")))
    ggml_base().ggml_set_abort_callback(callback)
    return callback


@cache
def initialise() -> None:
    """Start llama.cpp once in this process, its log captured. Raises NativeError for a build that does not fit."""
    native_log()
    llama_cpp.llama_backend_init()
    check_library()


def check_library() -> None:
    """Compare what llama.cpp's own functions fill in with what the Python structures say. Raises NativeError."""
    context = llama_cpp.llama_context_default_params()
    quantize = llama_cpp.llama_model_quantize_default_params()
    facts = {
        "ggml_type_name": ggml_base().ggml_type_name(llama_cpp.GGML_TYPE_Q4_K) == b"q4_K",
        "llama_context_params": (context.n_batch, context.type_k, context.type_v) == (2048, 1, 1)
        and not context.kv_unified,
        "llama_model_quantize_params": quantize.quantize_output_tensor
        and not quantize.dry_run
        and not quantize.imatrix,
    }
    if wrong := [name for name, right in facts.items() if not right]:
        raise NativeError(
            f"llama-cpp-python {llama_cpp.__version__} is laid out differently ({', '.join(wrong)});"
            " install the version that pyproject.toml names"
        )
