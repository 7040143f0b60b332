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

LOG_LEVEL_WARNING, LOG_LEVEL_ERROR, LOG_LEVEL_CONTINUED = 3, 4, 5  # enum ggml_log_level

LogListener = Callable[[str], None]


class NativeLog:
    """llama.cpp's log: kept away from the terminal, its complaints at hand for an error message."""

    def __init__(self) -> None:
        self.listeners: list[LogListener] = []
        self._complaints: deque[str] = deque(maxlen=2)
        self._partial = b""
        self._level = 0
        self._callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        if level != LOG_LEVEL_CONTINUED:
            self._level = level
        self._partial += text
        while b"\n" in self._partial:
            raw, self._partial = self._partial.split(b"\n", 1)
            if line := raw.decode("utf-8", errors="replace").strip(" .="):
                if self._level in (LOG_LEVEL_WARNING, LOG_LEVEL_ERROR):
                    self._complaints.append(line)
                for listener in self.listeners:
                    listener(line)

    def error(self, message: str) -> NativeError:
        """An error that ends with what llama.cpp complained of since the last one."""
        reason = "; ".join(self._complaints)
        self._complaints.clear()
        return NativeError(f"{message} ({reason})" if reason else message)


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
