"""What a model is made of, and how many components its attention needs."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.attention import AttentionMap, find_attention, read_projection
from pipeline.decompose.principal_components import explained_variance_ranks
from pipeline.gguf_file.reader import GGUFModel

SPECTRUM_THRESHOLDS = (0.99, 0.95, 0.9, 0.5, 0.3)
SPECTRUM_GROUPS = ("q", "k", "v", "kv")


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
        "file_bytes": sum(path.stat().st_size for path in model.paths),
        "parameters": sum(parameters.values()),
        "parameters_by_kind": dict(parameters.most_common()),
        "types": types,
        "surgery": {key: entry.value for key, entry in model.metadata.items() if key.startswith("surgery.")},
    }


def _kind(name: str) -> str:
    """A tensor's kind: its name without the layer's number and without `.weight`."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")


def spectra(model: GGUFModel) -> Iterator[dict[str, Any]]:
    """For each layer, the ranks that each of SPECTRUM_THRESHOLDS needs, for q, k, v and k+v stacked (mean kept)."""
    attention: AttentionMap = find_attention(model)
    for number, layer in attention.layers.items():
        matrices = {role: read_projection(model, projection) for role, projection in layer.items()}
        ranks = {}
        for group in SPECTRUM_GROUPS:
            stack = np.vstack([matrices[role] for role in group])
            ranks[group] = explained_variance_ranks(stack, SPECTRUM_THRESHOLDS)
        yield {"layer": number, "ranks": ranks}
