"""What a model is made of."""

import re
from collections import Counter
from itertools import chain
from typing import Any

from pipeline.attention import find_projections
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.projection import Projection
from pipeline.targets import TARGETS


def summarise(model: GGUFModel) -> dict[str, Any]:
    """Architecture, head counts, tensor types with their bytes, parameter counts per kind of tensor, and `projections`."""
    parameters: Counter[str] = Counter()
    types: dict[str, dict[str, int]] = {}
    for info in model.tensors.values():
        parameters[_kind(info.name)] += info.parameters
        entry = types.setdefault(info.type.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += info.nbytes
    found, left_alone = projections(model)
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
        "projections": found,
        "left_alone": left_alone,
        "surgery": {key: entry.value for key, entry in model.metadata.items() if key.startswith("surgery.")},
    }


def projections(model: GGUFModel) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """What can be operated on, by kind and shape, and the layers of which something is left alone, by the reason.

    Where nothing can be operated on, the reason stands alone.
    """
    try:
        attention = find_projections(model, TARGETS)
    except SurgeryError as error:
        return [], {str(error).removeprefix(f"{model.path}: "): []}
    groups: dict[tuple[str, int, int], list[Projection]] = {}
    for layer, own in attention.layers.items():
        for projection in chain(own.values(), *(block.values() for block in attention.beside.get(layer, {}).values())):
            groups.setdefault((projection.kind, projection.rows, projection.columns), []).append(projection)
    found = [
        {
            "projection": kind,
            "layers": list(dict.fromkeys(projection.layer for projection in members)),
            "matrices": len(members),
            "rows": rows,
            "columns": columns,
            "parameters": len(members) * rows * columns,
        }
        for (kind, rows, columns), members in groups.items()
    ]
    left_alone: dict[str, list[int]] = {}
    for layer, reason in attention.skipped.items():
        left_alone.setdefault(reason, []).append(layer)
    return found, left_alone


def _kind(name: str) -> str:
    """A tensor's kind: its name without the layer's number and without `.weight`."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")
