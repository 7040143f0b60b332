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

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
LOG_LEVEL_WARNING, LOG_LEVEL_ERROR, LOG_LEVEL_CONTINUED = 3, 4, 5  # enum ggml_log_level

MOST_ERRORS = 3  # in a message
MOST_OPERATIONS = 64  # fewer than ggml has, and MUL_MAT is among the first

LogListener = Callable[[str], None]
ActivityListener = Callable[[str, str], None]


class NativeLog:
    """llama.cpp's log: kept away from the terminal, its complaints at hand for an error message.

    And what is being done with it, on which file: it may abort, and then others have to say that.
    """

    def __init__(self) -> None:
        self.listeners: list[LogListener] = []
        self.activity_listeners: list[ActivityListener] = []
        self.activity: tuple[str, str] = ("", "")
        self._errors: list[str] = []  # the first ones: what failed first is the reason of the rest
        self._warnings: deque[str] = deque(maxlen=2)
        self._partial = b""
        self._level = 0
        self._callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        if level != LOG_LEVEL_CONTINUED:
            if level != self._level and self._partial:  # a complaint in the middle of another line, which ends it
                self._receive(LOG_LEVEL_CONTINUED, b"\n", user_data)
            self._level = level
        self._partial += text
        while b"\n" in self._partial:
            raw, self._partial = self._partial.split(b"\n", 1)
            if line := raw.decode("utf-8", errors="replace").strip(" .="):
                if self._level == LOG_LEVEL_ERROR and len(self._errors) < MOST_ERRORS:
                    self._errors.append(line)
                elif self._level == LOG_LEVEL_WARNING:
                    self._warnings.append(line)
                for listener in self.listeners:
                    listener(line)

    def doing(self, path: str, what: str) -> None:
        """Note that `what` (such as "loading it") begins with the file `path`."""
        if self.activity != (path, what):
            self.activity = path, what
            for listener in self.activity_listeners:
                listener(path, what)

    def error(self, message: str) -> NativeError:
        """An error that ends with llama.cpp's first errors since the last one, or with its warnings if it had none."""
        reason = "; ".join(dict.fromkeys(self._errors or self._warnings))
        self.forget()
        return NativeError(f"{message} ({reason})" if reason else message)

    def forget(self) -> None:
        """Forget complaints: what failed in vain, and was not the end, is no reason of what comes later."""
        self._errors.clear()
        self._warnings.clear()


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
    library.ggml_op_name.argtypes = [ctypes.c_int]
    library.ggml_op_name.restype = ctypes.c_char_p
    library.ggml_init.argtypes = [InitParams]
    library.gguf_init_from_file.argtypes, library.gguf_init_from_file.restype = (
        [ctypes.c_char_p, GGUFInitParams],
        ctypes.c_void_p,
    )
    library.gguf_get_alignment.argtypes, library.gguf_get_alignment.restype = [ctypes.c_void_p], ctypes.c_size_t
    library.gguf_free.argtypes = [ctypes.c_void_p]
    library.ggml_free.argtypes = [ctypes.c_void_p]
    library.ggml_new_tensor_2d.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.ggml_set_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.ggml_mul_mat.argtypes = [ctypes.c_void_p] * 3
    library.ggml_get_data.argtypes = [ctypes.c_void_p]
    for function in ("ggml_init", "ggml_new_tensor_2d", "ggml_set_name", "ggml_mul_mat", "ggml_get_data"):
        getattr(library, function).restype = ctypes.c_void_p
    return library


def file_alignment(path: str) -> int:
    """To what multiple of bytes the tensors of a GGUF file are aligned, as ggml reads it; the usual one if it cannot."""
    library = ggml_base()
    file = library.gguf_init_from_file(path.encode(), GGUFInitParams(True, None))
    if not file:
        return ALIGNMENT
    try:
        return int(library.gguf_get_alignment(file))
    finally:
        library.gguf_free(file)


class GGUFInitParams(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class GGMLTensor(ctypes.Structure):
    """The part of ggml_tensor that is read when a model is observed: sizes are in elements, strides in bytes."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@cache
def op_number(name: str) -> int:
    """The number of a graph operation, such as `MUL_MAT`. Raises NativeError for an unknown one."""
    for number in range(MOST_OPERATIONS):
        if ggml_base().ggml_op_name(number) == name.encode():
            return number
    raise NativeError(f"{name}: llama.cpp has no such operation")


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
        "ggml_tensor": _tensor_structure_fits(),
    }
    if wrong := [name for name, right in facts.items() if not right]:
        raise NativeError(
            f"llama-cpp-python {llama_cpp.__version__} is laid out differently ({', '.join(wrong)});"
            " install the version that pyproject.toml names"
        )


def _tensor_structure_fits() -> bool:
    """Whether tensors that ggml makes itself read through GGMLTensor as what they were made to be."""
    library = ggml_base()
    context = library.ggml_init(InitParams(2**20, None, False))
    try:
        left = library.ggml_new_tensor_2d(context, llama_cpp.GGML_TYPE_F32, 8, 3)
        right = library.ggml_new_tensor_2d(context, llama_cpp.GGML_TYPE_F32, 8, 5)
        library.ggml_set_name(left, b"left")
        product = GGMLTensor.from_address(library.ggml_mul_mat(context, left, right))
        first = GGMLTensor.from_address(left)
        return (
            (first.type, list(first.ne), list(first.nb)) == (llama_cpp.GGML_TYPE_F32, [8, 3, 1, 1], [4, 32, 96, 96])
            and (first.name, first.data) == (b"left", library.ggml_get_data(left))
            and library.ggml_op_name(product.op) == b"MUL_MAT"
            and (product.src[0], product.src[1], product.src[2]) == (left, right, None)
        )
    finally:
        library.ggml_free(context)
