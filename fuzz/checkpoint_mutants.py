"""Mutants of a checkpoint's files: safetensors, config.json and tokenizer.json, of their bytes and of what they say.

A mutant is made from a seed and a random generator alone, so its number is enough to make it again.
"""

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.config import Config
from pipeline.convert.expected import expected_tensors, names_of
from pipeline.convert.families import find_family
from pipeline.convert.pre_tokenizer import LLAMA3_PATTERN
from pipeline.convert.write import write_model

FILES = ("model.safetensors", "config.json", "tokenizer.json")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 10**4, 10**9, 10**12, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, -(10**9),
    0.0, -0.0, 0.5, 1e-45, 1e-300, 1e39, 1e300, float("inf"), float("-inf"), float("nan"),
    "", "x", "1", "F16", "BF16", "I64", "F8_E4M3", "yarn", "llama3", "linear", "\0", "\ud800", "a" * 5000, "[/b]", "\x1b[2J",
    [], [1], [[]], ["x"] * 40, [0] * 3000, {}, {"a": 1}, {"rope_type": "yarn"},
)  # fmt: skip
SIZES: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 260, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 257, "eos_token_id": [258],
    "tie_word_embeddings": True, "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32},
}  # fmt: skip


def write_seed(folder: Path) -> Path:
    """A tiny whole checkpoint, made without torch or transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SIZES))
    config, family = find_family(Config(folder / "config.json", SIZES))
    names = names_of(family, ())
    shapes = {e.stored: e.shape for e in expected_tensors(config, family, names)}
    shapes["model.embed_tokens.weight"] = (260, 8)
    header, data = {}, b""
    for name, shape in shapes.items():
        values = np.random.default_rng(len(data)).standard_normal(shape).astype(np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    (folder / "model.safetensors").write_bytes(_framed(json.dumps(header).encode(), data))
    alphabet = [chr(code if 33 <= code < 127 or 161 <= code != 173 else 256 + code) for code in range(256)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = ["<|begin|>", "<|end|>", "<|special|>"]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 257 + i, "content": text, **plain, "special": True} for i, text in enumerate(special)],
        "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
        "post_processor": {"type": "TemplateProcessing", "pair": [],
                           "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [257], "tokens": ["<|begin|>"]}},
                           "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
        "decoder": bytes_,
        "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(alphabet)} | {"ab": 256}, "ignore_merges": True,
                  "merges": [["a", "b"]]},
    }))  # fmt: skip
    return folder


def checkpoint_mutants(folder: Path, file: str) -> tuple[Callable[[Random], bytes], Callable[[Path], None]]:
    """How mutants of `file`, one of FILES, are made, and what commands do with a checkpoint that has such a file."""
    seed = write_seed(folder / "checkpoint")
    content = (seed / file).read_bytes()

    def read(path: Path) -> None:
        (seed / file).write_bytes(path.read_bytes())
        write_model(open_checkpoint(seed), path.with_name("converted.gguf"), force=True)

    return (lambda random: mutant(content, random, framed=file.endswith(".safetensors"))), read


def mutant(content: bytes, random: Random, *, framed: bool) -> bytes:
    """One to three changes of a JSON file, or of the JSON header of a safetensors file if `framed`."""
    length = struct.unpack("<Q", content[:8])[0] if framed else len(content)
    text, data = (content[8 : 8 + length], content[8 + length :]) if framed else (content, b"")
    for _ in range(random.randint(1, 3)):
        choice = random.random()
        if choice < 0.7:
            text = _change_value(text, random)
        elif choice < 0.9 or not framed:
            text = _change_bytes(text, random)
        else:
            data = _change_bytes(data, random)
    if not framed:
        return text
    whole = _framed(text, data)
    return whole if random.random() < 0.9 else _change_bytes(whole, random)


def _framed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _change_value(text: bytes, random: Random) -> bytes:
    """Another value, key or order somewhere in a JSON text; of its bytes where it is none any more."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _change_bytes(text, random)
    holders = _holders(value)
    if not holders:
        return json.dumps(random.choice(VALUES)).encode()
    holder = random.choice(holders)
    place = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match random.randrange(6):
        case 0:
            holder.pop(place)
        case 1 if isinstance(holder, dict):
            holder[random.choice(("x", "", "quantization_config", "dropout", str(place) + " "))] = random.choice(VALUES)
        case 2:
            other = random.choice(holders)
            if other and isinstance(other, list):
                holder[place] = copy.deepcopy(random.choice(other))
        case 3:
            return json.dumps(value).encode().replace(b"1", b"[" * random.choice((1, 30, 100_000)), 1)
        case _:
            holder[place] = random.choice(VALUES)
    return json.dumps(value).encode()


def _holders(value: Any) -> list[Any]:
    """The objects and arrays in a value that are not empty; of long ones, a few entries."""
    if not isinstance(value, (dict, list)) or not value:
        return []
    entries = list(value.values() if isinstance(value, dict) else value)[:50]
    return [value, *(holder for entry in entries for holder in _holders(entry))]


def _change_bytes(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data) + 1)
    end = min(len(data), start + random.choice((1, 1, 4, 16, 200)))
    match random.randrange(4):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:start] + data[start:end] * random.randint(2, 50) + data[end:]
    return data[:start] + random.randbytes(end - start) + data[end:]
