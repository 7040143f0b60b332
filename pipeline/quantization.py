"""Quantise a whole model file with llama.cpp's quantiser, in a process of its own."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from native.errors import NativeError
from native.isolated import isolated
from native.library import ALIGNMENT
from native.quantize_file import (
    FALLBACK_LINE,
    FILE_TYPES,
    PROGRESS_LINE,
    TYPE_LINE,
    UNWEIGHED,
    file_type,
    quantize_file,
)
from pipeline.errors import SurgeryError, UsageError, suggestion
from pipeline.files.output_file import check_output, complete_or_absent
from pipeline.gguf_file.reader import GGUFModel, open_gguf, tensor_nbytes
from pipeline.observations.importance_matrix import Match, match_importance, read_importance_matrix
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class Quantization:
    """What `quantize` did; `to_dict` is the JSON object that the command prints.

    fallbacks: the types of tensors that fell back to another one, because their width does not fit `type`
    importance: which matrices the importance matrix covers; None without one
    """

    source: str
    output: str
    type: str
    source_bytes: int
    output_bytes: int
    fallbacks: dict[str, str]
    importance: Match | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        importance = {"importance": self.importance.to_dict()} if self.importance else {}
        return {name: value for name, value in vars(self).items() if name != "importance"} | importance


def quantize(
    model: GGUFModel,
    output: Path,
    kind: str,
    *,
    importance_matrix: Path | None = None,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Quantization:
    """Write `output`: `model` quantised to `kind`, any type of llama.cpp's quantiser, in any case.

    `progress` counts tensors. Raises UsageError for an unknown type, a
    missing matrix or one of another model, or an output that cannot be, NativeError with llama.cpp's reason,
    SurgeryError on a full disk, or when the model was changed meanwhile.
    """
    kind = known_type(kind)
    check_output(output, force=force, sources=model.paths)
    started = time.perf_counter()
    importance = read_importance_matrix(importance_matrix) if importance_matrix else None
    match = match_importance(importance, model, importance_matrix) if importance and importance_matrix else None
    fallbacks: dict[str, str] = {}

    def on_log(line: str) -> None:
        for name, fallback in FALLBACK_LINE.findall(line):
            fallbacks[name] = fallback.upper()
        if match := PROGRESS_LINE.search(line):
            progress(int(match[1]), int(match[2]), "")

    with complete_or_absent(output, force=force, sources=model.paths) as temporary:
        for _ in isolated(
            quantize_file, str(model.path), str(temporary), kind,
            importance=importance, threads=threads, realigned=model.alignment != ALIGNMENT, on_log=on_log,
        ):  # fmt: skip
            pass
        model.require_unchanged(by_name=True)
        try:
            output_bytes = open_gguf(temporary).file_bytes
        except SurgeryError as error:
            raise SurgeryError(
                f"{model.path}: what llama.cpp's quantiser made of it cannot be read ({error})"
            ) from None
    return Quantization(
        str(model.path), str(output), kind, model.file_bytes, output_bytes, fallbacks, match,
        time.perf_counter() - started,
    )  # fmt: skip


def quantized_bytes(model: GGUFModel, kind: str) -> int:
    """How many bytes the file of `model` would have as `kind`, but for a few of metadata: from a dry run of the quantiser."""
    types: dict[str, str] = {}

    def on_log(line: str) -> None:
        types.update(TYPE_LINE.findall(line))

    for _ in isolated(quantize_file, str(model.path), os.devnull, known_type(kind), dry_run=True, on_log=on_log):
        pass
    changed = [
        (info, GGMLQuantizationType[types[info.name].upper()]) for info in model.tensors.values() if info.name in types
    ]
    return model.file_bytes + sum(tensor_nbytes(info.shape, kind) - info.nbytes for info, kind in changed)


def known_type(kind: str) -> str:
    """The quantiser's own name of a type. Raises UsageError for an unknown one."""
    try:
        return file_type(kind)
    except NativeError as error:
        raise UsageError(f"{error}{suggestion(kind, FILE_TYPES)}") from None


def require_weighing(kind: str) -> None:
    """Raise UsageError for a type in which an importance matrix would change nothing."""
    if known_type(kind) in UNWEIGHED:
        raise UsageError(
            f"`importance_matrix`: changes nothing in {known_type(kind)}; leave it out", argument="importance_matrix"
        )


def quantized_types(model: GGUFModel) -> list[str]:
    """The quantised types among a model's tensors; not empty means that quantising again adds loss to loss."""
    types = {info.type for info in model.tensors.values()}
    return sorted(kind.name for kind in types if GGML_QUANT_SIZES[kind][0] > 1)  # numbers in blocks, not one by one
