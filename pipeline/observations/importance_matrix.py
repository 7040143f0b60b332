"""Importance matrices in llama.cpp's GGUF form: how much each input of each weight counts when it is quantised.

Format: tools/imatrix/imatrix.cpp of llama.cpp. For a weight that is multiplied with activations the file has the sums of
their squares, `NAME.in_sum2` (matrices, columns), and how many were added up, `NAME.counts` (matrices, 1); a weight of
experts has a matrix for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.errors import SurgeryError, UsageError, no_file
from pipeline.files.output_file import check_output
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import DEFAULT_ALIGNMENT, GGUFModel, TensorInfo, open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.observations.statistics_file import Calibration

SUMS, COUNTS = ".in_sum2", ".counts"
SHOWN = 3  # names of matrices that are not covered
MAY_DIFFER = "token_embd.weight"  # where embeddings are looked up llama.cpp goes without, whatever the matrix has


@dataclass(frozen=True)
class Match:
    """Which of a model's matrices an importance matrix covers; `without` are the names of the others."""

    covered: int
    without: tuple[str, ...]

    def __str__(self) -> str:
        left = self.without
        shown = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
        return f"covers {self.covered} of {self.covered + len(left)} matrices" + (f"; not {shown}" if left else "")

    def to_dict(self) -> dict[str, object]:
        return {"covered": self.covered, "matrices": self.covered + len(self.without), "without": list(self.without)}


def read_importance_matrix(path: Path) -> dict[str, np.ndarray]:
    """The mean square of each input by tensor name: float32 (columns,), experts one after the other.

    Sums are divided by counts, matrix by matrix, and an expert that was never chosen counts its inputs alike, as
    llama-quantize does (tools/quantize/quantize.cpp). Raises UsageError for a missing file, SurgeryError for one that
    is something else or cannot be.
    """
    if not path.is_file():
        raise UsageError(
            f"`importance_matrix` {path}: {no_file(path)}; make one with surgery calibrate `imatrix_output`"
        )
    try:
        file = open_gguf(path)
    except SurgeryError as error:
        raise SurgeryError(f"`importance_matrix` {error}; make one with surgery calibrate `imatrix_output`") from None
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    if not names or any(name + COUNTS not in file.tensors for name in names):
        raise SurgeryError(
            f"`importance_matrix` {path}: not an importance matrix in llama.cpp's GGUF form; make one with"
            f" surgery calibrate `imatrix_output`"
        )
    return {name: _mean_squares(file, name) for name in names}


def _mean_squares(file: GGUFModel, name: str) -> np.ndarray:
    sums, counts = file.read(name + SUMS), file.read(name + COUNTS).reshape(-1, 1)
    if not counts.size or sums.size % counts.size:
        raise SurgeryError(
            f"`importance_matrix` {file.path}: {name} has {counts.size} counts for {sums.size} sums, which they do not divide;"
            " it was merged or made wrongly, make it anew"
        )
    sums = sums.reshape(len(counts), -1)
    if (sums < 0).any() or (counts < 0).any():
        raise SurgeryError(
            f"`importance_matrix` {file.path}: {name} has sums of squares or counts below 0; make it anew"
        )
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.float32(1)).astype(np.float32).ravel()


def match_importance(importance: Mapping[str, np.ndarray], model: GGUFModel, path: Path) -> Match:
    """Which matrices of `model` are covered. Raises UsageError when none is, or when one has another width."""
    matrices = {name: info for name, info in model.tensors.items() if _is_matrix(info)}
    covered = matrices.keys() & importance.keys()
    if not covered:
        raise UsageError(
            f"`importance_matrix` {path}: names none of the matrices of {model.name} (it has {min(importance)}, the model"
            f" {min(matrices, default='no matrix')}); make one of this model with surgery calibrate `imatrix_output`"
        )
    for name in sorted(covered - {MAY_DIFFER}):
        shape = matrices[name].shape
        expected = shape[-1] * (shape[0] if len(shape) == 3 else 1)
        if importance[name].size != expected:
            raise UsageError(
                f"`importance_matrix` {path}: has {importance[name].size} numbers for {name}, whose shape needs {expected};"
                " it is of another model, or of another split of its experts"
            )
    return Match(len(covered), tuple(name for name in matrices if name not in covered))


def _is_matrix(info: TensorInfo) -> bool:
    return len(info.shape) > 1 and info.shape[-2] > 1 and info.name.endswith(".weight")


def write_importance_matrix(calibration: Calibration, output: Path, *, force: bool, sources: tuple[Path, ...]) -> None:
    """Write what was seen while calibrating as an importance matrix. Raises UsageError for an output that cannot be."""
    check_output(output, force=force, sources=sources)
    source = calibration.origin
    metadata = [
        metadata_entry("general.type", "imatrix"),
        metadata_entry("imatrix.datasets", [source.text_name]),
        metadata_entry("imatrix.chunk_count", source.chunk_count),
        metadata_entry("imatrix.chunk_size", source.chunk_size),
    ]
    arrays: dict[str, np.ndarray] = {}
    for name, (squares, counts) in sorted(calibration.products().items()):
        arrays[name + SUMS] = squares.astype(np.float32).reshape(len(counts), -1)
        arrays[name + COUNTS] = counts.astype(np.float32).reshape(-1, 1)
    declarations = [TensorDeclaration(name, values.shape, GGMLQuantizationType.F32) for name, values in arrays.items()]
    with create_gguf(
        output, metadata, declarations, alignment=DEFAULT_ALIGNMENT, force=force, sources=sources
    ) as writer:
        for name, values in arrays.items():
            writer.put(name, values.view(np.uint8))
