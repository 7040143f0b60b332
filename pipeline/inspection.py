"""What a model is made of."""

import re
from collections import Counter
from typing import Any

from pipeline.gguf_file.reader import GGUFModel


def summarise(model: GGUFModel) -> dict[str, Any]:
    """Architecture, head counts, tensor types with their bytes, and parameter counts per kind of tensor."""
    parameters: Counter[str] = Counter()
    types: dict[str, dict[str, int]] = {}
    for info in model.tensors.values():
        parameters[_kind(info.name)] += info.parameters
        entry = types.setdefault(info.type.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += info.nbytes
    return {
        "path": str(model.path),
        "name": model.get("general.name"),
        "architecture": model.architecture,
        "layers": model.hyperparameter("block_count"),
        "embedding_length": model.hyperparameter("embedding_length"),
        "context_length": model.hyperparameter("context_length"),
        "heads": model.hyperparameter("attention.head_count"),
        "kv_heads": model.hyperparameter("attention.head_count_kv", model.hyperparameter("attention.head_count")),
        "file_bytes": model.file_bytes,
        "parameters": sum(parameters.values()),
        "parameters_by_kind": dict(parameters.most_common()),
        "types": types,
        "surgery": {key: entry.value for key, entry in model.metadata.items() if key.startswith("surgery.")},
    }


def _kind(name: str) -> str:
    """A tensor's kind: its name without the layer's number and without `.weight`."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")
