"""Whole files through llama.cpp's quantiser. It may abort, so it is meant to be run with `native.isolated`."""

import ctypes
import errno
import re
from collections.abc import Generator

import gguf
import llama_cpp
import numpy as np

from native.errors import NativeError
from native.library import ALIGNMENT, initialise, native_log
from native.model import default_threads

NOT_OFFERED = {"GUESSED", "NVFP4"}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
READABLE = {kind.value for kind in gguf.LlamaFileType}  # by the gguf package, which may be older than llama.cpp
FILE_TYPES: dict[str, int] = {
    match[1]: number
    for name, number in vars(llama_cpp).items()
    if (match := re.fullmatch(r"LLAMA_FTYPE_(?:MOSTLY|ALL)_(\w+)", name))
    and match[1] not in NOT_OFFERED
    and number in READABLE
}
UNWEIGHED = {"F32", "F16", "BF16", "Q8_0"}
"""The file types none of whose tensors an importance matrix changes (ggml-quants.c)."""
PROGRESS_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
TYPE_LINE = re.compile(r"\[\s*\d+/\s*\d+\] (.+?)\s+- \[[^\]]*\], type = .* -> .*MiB \((\w+)\)")
"""Of a dry run: a tensor that becomes of another type, and which."""
FALLBACK_LINE = re.compile(r"warning: (\S+).*-> falling back to\s+(\S+)")


def file_type(name: str) -> str:
    """The quantiser's own name of a type given in any case, aliases resolved. Raises NativeError for an unknown one."""
    upper = ALIASES.get(name.upper(), name.upper())
    if upper not in FILE_TYPES:
        raise NativeError(f"{name}: not a type that llama.cpp quantises to; choose one of {', '.join(FILE_TYPES)}")
    return upper


def quantize_file(
    source: str,
    output: str,
    kind: str,
    *,
    importance: dict[str, np.ndarray] | None = None,
    threads: int = 0,
    realigned: bool = False,
    dry_run: bool = False,
) -> Generator[None, None, None]:
    """Quantise `source` to `output` as type `kind`; yields nothing, its progress is in the log.

    A quantised source is quantised again; `dry_run` only finds out, in the log, how large it would be. `importance`
    maps tensor names to float32 arrays (columns,), those of experts one after the other. `realigned` is for a source
    whose alignment is not 32: llama.cpp's quantiser pads to 32 whatever the file says (llama-quant.cpp), so it has to
    say 32. Raises NativeError with llama.cpp's reason, OSError when `output` cannot be written.
    """
    initialise()
    native_log().doing(source, f"quantising it to {kind}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type(kind)]
    params.nthread = threads or default_threads()
    params.allow_requantize = True
    params.dry_run = dry_run
    if importance:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if realigned:
        overrides = (llama_cpp.llama_model_kv_override * 2)()  # the second, without a key, ends them
        overrides[0].tag, overrides[0].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, b"general.alignment"
        overrides[0].value.val_i64 = ALIGNMENT  # type: ignore[union-attr]  # it is the union, whatever its type says
        params.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_kv_override))
    if llama_cpp.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(params)):
        error = native_log().error(f"{source}: llama.cpp could not quantise it to {kind}")
        if importance is None and "imatrix" in str(error):
            error = NativeError(f"{kind}: needs an importance matrix for this model; give one with `importance_matrix`")
        if "iostream error" in str(error):
            raise OSError(errno.EIO, "llama.cpp's quantiser ran into a write error; is the disk full?")
        raise error
    yield from ()
