"""Tiny random models as GGUF files, written with the gguf package, independently of pipeline's own writer."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np


@dataclass(frozen=True)
class TinyModel:
    """Sizes of a tiny model. `fused` writes attn_qkv (phi3), `bias` adds q, k and v biases (qwen2)."""

    architecture: str = "llama"
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    key_length: int = 16
    value_length: int = 16
    feed_forward: int = 96
    fused: bool = False
    bias: bool = False
    adds_bos: bool = False
    seed: int = 0
    type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
    without_attention: tuple[int, ...] = ()


def byte_vocabulary() -> list[str]:
    """The 256 byte-level BPE symbols, then an end token: GPT-2's table of printable stand-ins."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, stand_in = {}, 256
    for byte in range(256):
        if byte in printable:
            symbols[byte] = chr(byte)
        else:
            symbols[byte] = chr(stand_in)
            stand_in += 1
    return [*(symbols[byte] for byte in range(256)), "<|end|>"]


def tensors_of(model: TinyModel) -> dict[str, np.ndarray]:
    """Every tensor by name, float32, matrices as (out_features, in_features)."""
    rng = np.random.default_rng(model.seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    vocabulary = len(byte_vocabulary())
    heights = {
        "q": model.heads * model.key_length,
        "k": model.kv_heads * model.key_length,
        "v": model.kv_heads * model.value_length,
    }
    tensors = {
        "token_embd.weight": matrix(vocabulary, model.width),
        "output_norm.weight": np.ones(model.width, np.float32),
    }
    for layer in range(model.layers):
        block = f"blk.{layer}."
        tensors[block + "attn_norm.weight"] = np.ones(model.width, np.float32)
        if layer not in model.without_attention:
            weights = {role: matrix(height, model.width) for role, height in heights.items()}
            if model.fused:
                tensors[block + "attn_qkv.weight"] = np.vstack([*weights.values()])
            else:
                tensors |= {f"{block}attn_{role}.weight": weight for role, weight in weights.items()}
            if model.bias:
                tensors |= {f"{block}attn_{role}.bias": matrix(1, height)[0] for role, height in heights.items()}
            tensors[block + "attn_output.weight"] = matrix(model.width, model.heads * model.value_length)
        tensors[block + "ffn_norm.weight"] = np.ones(model.width, np.float32)
        up = 2 * model.feed_forward if model.fused else model.feed_forward
        if not model.fused:
            tensors[block + "ffn_gate.weight"] = matrix(model.feed_forward, model.width)
        tensors[block + "ffn_up.weight"] = matrix(up, model.width)
        tensors[block + "ffn_down.weight"] = matrix(model.width, model.feed_forward)
    return tensors


def write_tiny_model(
    path: Path,
    model: TinyModel = TinyModel(),
    *,
    metadata: Mapping[str, tuple[Any, gguf.GGUFValueType]] = {},
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write `model` to `path` with a byte-level vocabulary, such that llama.cpp loads it.

    `metadata` adds to what is written or replaces it; `tensors` are others than `tensors_of` makes.
    """
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_name("tiny")
    writer.add_block_count(model.layers)
    writer.add_context_length(512)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.key_length)
    writer.add_value_length(model.value_length)
    writer.add_rope_dimension_count(model.key_length)
    writer.add_layer_norm_rms_eps(1e-5)
    if model.architecture == "phi3":
        writer.add_sliding_window(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = byte_vocabulary()
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges([f"{tokens[104]} {tokens[101]}"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(model.adds_bos)
    for key, (value, value_type) in metadata.items():
        if any(key in part for part in writer.kv_data):
            del writer.kv_data[0][key]
        if value_type == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, value_type)
    for name, values in (tensors_of(model) if tensors is None else tensors).items():
        kind = model.type if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            name,
            gguf.quantize(values, kind),
            raw_shape=None if kind <= 1 else gguf.quantize(values, kind).shape,
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_number(source: Path, target: Path, tensor: str, value: float) -> Path:
    """Copy an F32 model to `target` with `value` in place of the first number of a tensor."""
    shutil.copyfile(source, target)
    tensors = gguf.GGUFReader(target, "r+").tensors
    next(t for t in tensors if t.name == tensor).data.flat[0] = value
    return target
