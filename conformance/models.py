"""The random models of llama.cpp's own test, made fit to be looked at: with a vocabulary, and with weights that matter."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from conformance.programs import Programs
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry
from pipeline.gguf_file.reader import FLOAT_TYPES, GGUFModel, open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf

CHARACTERS = [
    "\u0120",
    "\u010a",
    *map(chr, range(33, 127)),
    "th",
]  # blank and newline as byte-level vocabularies spell them
ATTENTION_GAIN = 3.0
SEED = 1


def make_models(programs: Programs, folder: Path) -> list[Path]:
    """Every model that `test-llama-archs` makes, in a folder in `folder`, those of an earlier run kept; paths, sorted."""
    folder = folder / "models"
    done = folder / "complete"
    if not done.exists():
        raw = folder / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        programs.run("test-llama-archs", "-s", SEED, "-o", raw)
        for path in sorted(raw.glob("*.gguf")):
            write_usable(open_gguf(path), folder / path.name)
            path.unlink()
        raw.rmdir()
        done.touch()
    return sorted(folder.glob("*.gguf"))


def write_usable(model: GGUFModel, output: Path) -> None:
    """`model` with a vocabulary of single characters, norms about 1, and attention that its output depends on."""
    declarations = [TensorDeclaration(t.name, t.shape, GGMLQuantizationType.F32) for t in model.tensors.values()]
    with create_gguf(output, list(_metadata(model)), declarations, alignment=model.alignment, force=True) as writer:
        for declaration in declarations:
            if model.tensors[declaration.name].type not in FLOAT_TYPES:
                raise ValueError(f"{model.path}: {declaration.name} is not of a float type")
            writer.put(declaration.name, _louder(declaration.name, model.read(declaration.name)).view(np.uint8))


def _louder(name: str, values: np.ndarray) -> np.ndarray:
    if name.endswith("norm.weight"):
        return values + 1
    if ".attn_" in name and name.endswith(".weight") and values.ndim > 1:
        return values * np.float32(ATTENTION_GAIN)
    return values


def _metadata(model: GGUFModel) -> Iterator[MetadataEntry]:
    count = model.tensors["token_embd.weight"].shape[0]
    tokens = [*CHARACTERS, *(f"<unused{n}>" for n in range(count - len(CHARACTERS) - 1)), "<|end|>"]
    for key, entry in model.metadata.items():
        if not key.startswith("tokenizer."):
            yield entry
    kinds = [1] * len(CHARACTERS) + [5] * (count - len(CHARACTERS) - 1) + [3]  # normal, unused, control
    yield metadata_entry("tokenizer.ggml.token_type", kinds, GGUFValueType.INT32)
    for key, value in {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "merges": ["t h"],
        "bos_token_id": count - 1,
        "eos_token_id": count - 1,
        "add_bos_token": False,
    }.items():
        yield metadata_entry(f"tokenizer.ggml.{key}", value)
