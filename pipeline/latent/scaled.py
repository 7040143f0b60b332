"""Multiply a stored tensor by a power of two without decoding it: a quantised block's scales are half-precision numbers.

Layouts of the blocks: ggml-common.h, block_q4_0 and its kin.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from pipeline.errors import SurgeryError
from pipeline.gguf_file.encode import encode_rows
from pipeline.gguf_file.reader import FLOAT_TYPES, GGUFModel

SCALE_OFFSETS: dict[GGMLQuantizationType, tuple[int, ...]] = {
    GGMLQuantizationType.Q4_0: (0,),
    GGMLQuantizationType.Q4_1: (0, 2),
    GGMLQuantizationType.Q5_0: (0,),
    GGMLQuantizationType.Q5_1: (0, 2),
    GGMLQuantizationType.Q8_0: (0,),
    GGMLQuantizationType.Q2_K: (80, 82),
    GGMLQuantizationType.Q3_K: (108,),
    GGMLQuantizationType.Q4_K: (0, 2),
    GGMLQuantizationType.Q5_K: (0, 2),
    GGMLQuantizationType.Q6_K: (208,),
    GGMLQuantizationType.IQ4_NL: (0,),
    GGMLQuantizationType.IQ4_XS: (0,),
}
"""Where in a block its half-precision scales stand, in bytes from the block's start."""


def scaled_type(kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type that a tensor of type `kind` has once it is scaled: its own, or F16 where its scales are not known."""
    return kind if kind in FLOAT_TYPES or kind in SCALE_OFFSETS else GGMLQuantizationType.F16


def read_scaled(model: GGUFModel, name: str, factor: float) -> np.ndarray:
    """The stored bytes, uint8, of tensor `name` times `factor`, a power of two, in `scaled_type` of its type.

    Exact but for numbers below half precision's normal range. Raises SurgeryError when a number or a scale becomes too
    large for half precision.
    """
    kind = model.tensors[name].type
    if kind not in SCALE_OFFSETS:
        return encode_rows(name, model.read(name) * np.float32(factor), scaled_type(kind))
    raw = model.read_raw(name)
    blocks = raw.reshape(-1, GGML_QUANT_SIZES[kind][1])
    for offset in SCALE_OFFSETS[kind]:
        scales = np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16).astype(np.float32) * factor
        if np.abs(scales).max(initial=0) > np.finfo(np.float16).max:
            raise SurgeryError(f"tensor {name}: its scales are too large to be multiplied by {factor:g}")
        blocks[:, offset : offset + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return raw
