"""Turn reconstructed float32 matrices into the bytes of a GGUF tensor type."""

import numpy as np
from gguf import GGMLQuantizationType, dequantize, quantize

from native.quantize_rows import quantize_rows
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import FLOAT_TYPES, GGUFModel, TensorInfo
from pipeline.projection import Projection

OUTTYPES = ("auto", "keep", "f32", "f16", "bf16")


def output_type(info: TensorInfo, outtype: str) -> GGMLQuantizationType:
    """The type that an operated tensor is written in: `auto` keeps a float type and turns a quantised one into F16."""
    if outtype == "keep" or (outtype == "auto" and info.type in FLOAT_TYPES):
        return info.type
    return GGMLQuantizationType.F16 if outtype == "auto" else GGMLQuantizationType[outtype.upper()]


def encode_tensor(
    model: GGUFModel,
    name: str,
    replacements: dict[Projection, np.ndarray],
    kind: GGMLQuantizationType,
    matrix: int | None = None,
) -> np.ndarray:
    """The stored bytes of tensor `name`, or of a `matrix` of it, with projections of that replaced.

    uint8 of shape (rows, bytes per row). Rows that are not replaced keep their bytes where the type stays the same.
    """
    if kind == model.tensors[name].type and not any(projection.transposed for projection in replacements):
        data = model.read_raw(name, matrix)
        for projection, values in replacements.items():
            projection.put(data, encode_rows(name, values, kind))
        return data
    whole = model.read(name, matrix)
    for projection, values in replacements.items():
        projection.put(whole, values)
    return encode_rows(name, whole, kind)


def encode_rows(
    name: str, values: np.ndarray, kind: GGMLQuantizationType, importance: np.ndarray | None = None
) -> np.ndarray:
    """Encode float32 `values` (rows, columns), or several such matrices, as `kind`: uint8, (..., bytes per row).

    `importance`, float32 (columns,) for each matrix, one after the other, weighs the columns as an importance matrix
    does. Raises SurgeryError when a value does not fit in F16 (largest magnitude 65504).
    """
    if kind == GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise SurgeryError(f"tensor {name} holds values too large for F16; use `outtype` f32 or bf16")
    if kind in FLOAT_TYPES:
        return quantize(values, kind).view(np.uint8)
    if values.ndim > 2:
        weights = [None] * len(values) if importance is None else np.split(importance, len(values))
        return np.stack([quantize_rows(*each) for each in zip(values, [kind] * len(values), weights, strict=True)])
    return quantize_rows(values, kind, importance)


def as_stored(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Float32 `values` (..., columns) as they come back from being stored as `kind`, row by row."""
    rows = encode_rows("cache", values.reshape(-1, values.shape[-1]), kind)
    return dequantize(rows, kind).reshape(values.shape)
