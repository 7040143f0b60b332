"""Operated tensors put into a quantisation of the model that they come from, which is then as if quantised whole.

Only the targets differ between a quantised model and the same model operated on and then quantised; llama.cpp's choice
of types looks at names, shapes and the file type, never at values. So the bytes are those of the whole-file quantiser.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.gguf_file.encode import encode_rows
from pipeline.gguf_file.metadata import MetadataEntry
from pipeline.gguf_file.provenance import PREFIX
from pipeline.gguf_file.reader import GGUFModel
from pipeline.gguf_file.writer import GGUFWriter, TensorDeclaration, create_gguf

RESTAMPED = ("general.quantization_version", "general.file_type", "general.alignment")  # by the quantiser, at the end


def write_patched(
    model: GGUFModel,
    operated: GGUFModel,
    output: Path,
    *,
    importance: dict[str, np.ndarray] | None = None,
    force: bool = False,
) -> None:
    """Write `output`: `model` with the tensors of `operated`, encoded in `model`'s types, all else byte-identical.

    `operated` is what `operate_family` wrote with `operated_only`. `importance`, float32 (columns,) by tensor name, is
    the matrix that `model` was quantised with. Raises UsageError for an output that cannot be, SurgeryError
    for values that do not fit.
    """
    _write(model, operated, output, {}, _quantised_metadata(model, operated), importance or {}, force)


def write_operated(model: GGUFModel, operated: GGUFModel, output: Path, *, force: bool = False) -> None:
    """Write `output` as `operate` would: `model` with the tensors of `operated` in the types that they have there."""
    kinds = {name: info.type for name, info in operated.tensors.items()}
    _write(model, operated, output, kinds, list(operated.metadata.values()), {}, force)


def _write(
    model: GGUFModel,
    operated: GGUFModel,
    output: Path,
    kinds: dict[str, GGMLQuantizationType],
    metadata: list[MetadataEntry],
    importance: dict[str, np.ndarray],
    force: bool,
) -> None:
    declarations = [TensorDeclaration(t.name, t.shape, kinds.get(t.name, t.type)) for t in model.tensors.values()]
    with create_gguf(
        output, metadata, declarations, alignment=model.alignment, force=force, sources=model.paths
    ) as writer:
        for tensor in declarations:
            if tensor.name not in operated.tensors:
                writer.copy_from(model, tensor.name)
            elif operated.tensors[tensor.name].type == tensor.type:
                writer.copy_from(operated, tensor.name)
            else:
                _put_encoded(writer, operated, tensor, importance.get(tensor.name))


def _put_encoded(
    writer: GGUFWriter, operated: GGUFModel, tensor: TensorDeclaration, importance: np.ndarray | None
) -> None:
    """Write a tensor in the type that it is declared in; of one of several matrices one after the other."""
    several = range(tensor.shape[0]) if len(tensor.shape) == 3 else [None]
    for matrix in several:
        weights = importance
        if importance is not None and matrix is not None:
            weights = np.split(importance, tensor.shape[0])[matrix]
        values = operated.read(tensor.name, matrix)
        writer.put(tensor.name, encode_rows(tensor.name, values, tensor.type, weights), matrix)


def _quantised_metadata(model: GGUFModel, operated: GGUFModel) -> list[MetadataEntry]:
    kept = [
        entry
        for key, entry in operated.metadata.items()
        if key not in RESTAMPED and (key in model.metadata or key.startswith(PREFIX))
    ]
    return kept + [model.metadata[key] for key in model.metadata if key in RESTAMPED]
