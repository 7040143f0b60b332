"""Where q, k and v live in a GGUF model: tensor names, head counts, fused tensors."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import GGUFModel

ROLES = ("q", "k", "v")


@dataclass(frozen=True)
class Projection:
    """One of q, k and v of a layer: rows `start` to `stop` (output features) of a tensor; columns are input features."""

    layer: int
    role: str
    tensor: str
    start: int
    stop: int
    columns: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class AttentionMap:
    """`layers` maps a layer's number to its projections by role; `skipped` lists layers without q, k and v."""

    layers: dict[int, dict[str, Projection]]
    skipped: tuple[int, ...]


def find_attention(model: GGUFModel) -> AttentionMap:
    """Find the projections of every layer, separate (`attn_q`, `attn_k`, `attn_v`) or fused (`attn_qkv`).

    Raises SurgeryError when no layer has them, when a shape contradicts the head counts or the embedding's length, or
    when there cannot be as many layers as the metadata say.
    """
    count, most = model.hyperparameter("block_count"), len(model.tensors)
    if count is not None and not (type(count) is int and 1 <= count <= most):
        raise SurgeryError(
            f"{model.path}: {model.architecture}.block_count is {repr(count)[:40]}; expected a number of layers,"
            f" at least 1 and at most that of its tensors, {most}; the file is damaged, get it anew"
        )
    layers, skipped = {}, []
    for layer in range(count or 0):
        if projections := _separate(model, layer) or _fused(model, layer):
            _check_shapes(model, layer, projections)
            layers[layer] = projections
        else:
            skipped.append(layer)
    if not layers:
        raise SurgeryError(
            f"{model.path}: no layer of this {model.architecture or 'unnamed'} model has attn_q, attn_k and attn_v"
            " (or attn_qkv) weights; surgery needs a model with ordinary attention, such as Llama, Mistral or Qwen"
        )
    return AttentionMap(layers, tuple(skipped))


def _separate(model: GGUFModel, layer: int) -> dict[str, Projection] | None:
    names = {role: f"blk.{layer}.attn_{role}.weight" for role in ROLES}
    if not all(name in model.tensors for name in names.values()):
        return None
    shapes = {role: model.tensors[name].shape for role, name in names.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[1] for shape in shapes.values()}) != 1:
        raise SurgeryError(
            f"{model.path}: layer {layer}: q, k and v have shapes {shapes}; they should be matrices of equal width"
        )
    return {role: Projection(layer, role, names[role], 0, *shape) for role, shape in shapes.items()}


def _fused(model: GGUFModel, layer: int) -> dict[str, Projection] | None:
    name = f"blk.{layer}.attn_qkv.weight"
    if name not in model.tensors:
        return None
    shape = model.tensors[name].shape
    heads = of_layer(model.hyperparameter("attention.head_count", 0), layer)
    heads_kv = of_layer(model.hyperparameter("attention.head_count_kv", heads), layer)
    width = model.hyperparameter("embedding_length", 0)
    key_length = model.hyperparameter("attention.key_length", width // heads if heads else 0)
    value_length = model.hyperparameter("attention.value_length", width // heads if heads else 0)
    heights = (heads * key_length, heads_kv * key_length, heads_kv * value_length)
    if len(shape) != 2 or sum(heights) != shape[0] or 0 in heights:
        raise SurgeryError(
            f"{model.path}: {name} has shape {shape}, but {heads} query and {heads_kv} key/value heads of"
            f" {key_length} and {value_length} make {' + '.join(map(str, heights))} rows"
        )
    projections, start = {}, 0
    for role, height in zip(ROLES, heights, strict=True):
        projections[role] = Projection(layer, role, name, start, start + height, shape[1])
        start += height
    return projections


def _check_shapes(model: GGUFModel, layer: int, projections: dict[str, Projection]) -> None:
    """Raise SurgeryError where the metadata contradicts q, k and v: llama.cpp would not load what is made of them.

    A key that the model lacks says nothing. A head's size is not looked up, as architectures have several keys for it.
    """
    q = projections["q"]
    width = of_layer(model.hyperparameter("embedding_length", q.columns), layer)
    if width != q.columns:
        raise _contradiction(model, "embedding_length", width, f"{q.tensor} has {q.columns} columns")
    sizes = {}
    for key, roles in (("attention.head_count", "q"), ("attention.head_count_kv", "kv")):
        heads = of_layer(model.hyperparameter(key, 1), layer)
        for projection in (projections[role] for role in roles):
            if not isinstance(heads, int) or heads < 1 or projection.rows % heads:
                found = f"{projection.role} in {projection.tensor} has {projection.rows} rows to divide among the heads"
                raise _contradiction(model, key, heads, found)
            if model.hyperparameter(key) is not None:
                sizes[projection.role] = projection.rows // heads
    if {"q", "k"} <= sizes.keys() and sizes["q"] % sizes["k"]:  # a q with a gate beside it has twice the rows
        heads = of_layer(model.hyperparameter("attention.head_count"), layer)
        found = f"in layer {layer} q would then have {sizes['q']} features a head, and k has {sizes['k']}"
        raise _contradiction(model, "attention.head_count", heads, found)


def _contradiction(model: GGUFModel, key: str, value: object, found: str) -> SurgeryError:
    return SurgeryError(
        f"{model.path}: {model.architecture}.{key} is {value}, but {found}; one of them is wrong, get the file anew"
    )


def of_layer(value: int | list[int], layer: int) -> int:
    """A hyperparameter that is one number for all layers or a list with one for each; 0 where the list has ended."""
    if isinstance(value, list):
        return value[layer] if layer < len(value) else 0
    return value


def read_projection(model: GGUFModel, projection: Projection) -> np.ndarray:
    """A projection's weights, float32 of shape (out_features, in_features)."""
    return model.read(projection.tensor)[projection.start : projection.stop]


def parse_layers(text: str, available: Iterable[int], option: str = "--layers") -> list[int]:
    """The layer numbers that `text`, such as `0-10,12` or `all`, names among `available`, in order.

    Raises UsageError, which names `option`, for anything else, and for a layer that has no attention to operate on.
    """
    available = sorted(available)
    if text == "all":
        return available
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"{option} {text!r}: {part!r} is neither a number nor a range; write for example 0-10,12")
        first, last = int(match[1]), int(match[2] or match[1])
        if unknown := [layer for layer in (first, last) if layer not in available]:
            raise UsageError(
                f"{option} {text!r}: layer {unknown[0]} has no q, k and v; this model has them in {available[0]} to {available[-1]}"
            )
        chosen |= set(range(first, last + 1)) & set(available)
    return sorted(chosen)
