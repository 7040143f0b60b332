"""Quantise a whole model file with llama.cpp's quantiser, in a process of its own."""

import os
import time
from pathlib import Path
from typing import Any

from native.errors import NativeError
from native.isolated import isolated
from native.quantize_file import (
    FALLBACK_LINE,
    PROGRESS_LINE,
    SIZE_LINE,
    file_type,
    quantize_file,
    read_importance_matrix,
)
from pipeline.errors import UsageError, no_file
from pipeline.files.output_file import complete_or_absent
from pipeline.gguf_file.reader import FLOAT_TYPES, GGUFModel, open_gguf
from pipeline.program import program
from pipeline.progress import Progress, silent


def quantize(
    model: GGUFModel,
    output: Path,
    kind: str,
    *,
    importance_matrix: Path | None = None,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write `output`: `model` quantised to `kind`, any type of llama.cpp's quantiser, in any case.

    `progress` counts tensors. The result names the tensors that fell back to another type because their
    width does not fit. Raises UsageError for an unknown type, a missing matrix or an output that cannot be,
    NativeError with llama.cpp's reason, SurgeryError on a full disk.
    """
    kind = known_type(kind)
    started = time.perf_counter()
    check_importance_matrix(importance_matrix)
    importance = read_importance_matrix(importance_matrix) if importance_matrix else None
    fallbacks: dict[str, str] = {}

    def on_log(line: str) -> None:
        for name, fallback in FALLBACK_LINE.findall(line):
            fallbacks[name] = fallback.upper()
        if match := PROGRESS_LINE.search(line):
            progress(int(match[1]), int(match[2]), "")

    with complete_or_absent(output, force=force, sources=model.paths) as temporary:
        for _ in isolated(
            quantize_file, str(model.path), str(temporary), kind, importance=importance, threads=threads, on_log=on_log
        ):
            pass
        open_gguf(temporary)
    return {
        "source": str(model.path),
        "output": str(output),
        "type": kind,
        "source_bytes": model.file_bytes,
        "output_bytes": output.stat().st_size,
        "fallbacks": fallbacks,
        "seconds": time.perf_counter() - started,
    }


def quantized_bytes(model: GGUFModel, kind: str) -> int:
    """About how many bytes the tensors of `model` would take as `kind`, from a dry run of llama.cpp's quantiser."""
    sizes: list[float] = []

    def on_log(line: str) -> None:
        sizes.extend(float(mebibytes) for mebibytes in SIZE_LINE.findall(line))

    for _ in isolated(quantize_file, str(model.path), os.devnull, known_type(kind), dry_run=True, on_log=on_log):
        pass
    return round(sizes[-1] * 2**20)


def check_importance_matrix(path: Path | None) -> None:
    """Raise UsageError when --imatrix names no file."""
    if path is not None and not path.is_file():
        raise UsageError(f"--imatrix {path}: {no_file(path)}; make one with {program()} calibrate --imatrix-output")


def known_type(kind: str) -> str:
    """The quantiser's own name of a type. Raises UsageError for an unknown one."""
    try:
        return file_type(kind)
    except NativeError as error:
        raise UsageError(str(error)) from None


def quantized_types(model: GGUFModel) -> list[str]:
    """The quantised types among a model's tensors; not empty means that quantising again adds loss to loss."""
    return sorted({info.type.name for info in model.tensors.values()} - {kind.name for kind in FLOAT_TYPES})
