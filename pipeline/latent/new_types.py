"""In which types a latent's new matrices are stored, and which of their columns count most where that rounds."""

from collections.abc import Mapping

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from pipeline.gguf_file.encode import output_type
from pipeline.gguf_file.reader import TensorInfo
from pipeline.latent.weights import LatentWeights

REPLACES = {"attn_q": "q", "attn_kv_a_mqa": "kv", "attn_k_b": "k", "attn_v_b": "v"}
"""Whose place each new matrix takes; of two the one with more bits says its type."""

FALLBACKS = {
    **dict.fromkeys(
        (Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ4_XS),
        Kind.IQ4_NL,
    ),
    **dict.fromkeys((Kind.Q2_K, Kind.Q3_K, Kind.TQ1_0, Kind.TQ2_0), Kind.Q4_0),
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
}
"""What llama.cpp's quantiser takes for rows that are no whole blocks of 256 (llama-quant.cpp, tensor_type_fallback).

It has nothing for other types; they become F16 here."""


def new_types(
    sources: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]], outtype: str
) -> dict[str, Kind]:
    """The type of each new tensor by name; `sources` are the layer's q, k and v by role. Norms are F32.

    `keep` takes that of the source: as llama.cpp does, another one of about its size where a row is no whole number of
    its blocks, and F16 where it is none of that one's either.
    """
    result = {}
    for name, shape in shapes.items():
        if name not in REPLACES:
            result[name] = Kind.F32
            continue
        kinds = [output_type(sources[role], outtype) for role in REPLACES[name]]
        kind = max(kinds, key=lambda each: GGML_QUANT_SIZES[each][1] / GGML_QUANT_SIZES[each][0])
        result[name] = _fitting(kind, shape[-1])
    return result


def _fitting(kind: Kind, columns: int) -> Kind:
    for each in (kind, FALLBACKS.get(kind, Kind.F16)):
        if columns % GGML_QUANT_SIZES[each][0] == 0:
            return each
    return Kind.F16


def importances(weights: LatentWeights, queries: np.ndarray, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """How much each column of the new matrices counts: the mean square of what it is multiplied with, float32.

    queries: what `attn_k_b` reads, made of a layer's inputs, (heads, m, d); inputs: the second moment of these, (d, d).
    Heads one after the other, as `encode_rows` takes them. Of attended latents, which are means of tokens', the tokens'
    stand for their own.
    """
    latents = np.einsum("rd,de,re->r", weights.latent, inputs, weights.latent, optimize=True)
    squares = {
        "attn_q": np.diag(inputs),
        "attn_kv_a_mqa": np.diag(inputs),
        "attn_k_b": np.einsum("hbd,de,hbe->hb", queries, inputs, queries, optimize=True).ravel(),
        "attn_v_b": np.tile(latents, len(weights.value)),
    }
    floor = np.finfo(np.float32).tiny  # a column that nothing reads still needs a weight above 0
    return {name: np.maximum(values, 0).astype(np.float32) + floor for name, values in squares.items()}
