"""Where the matrices that surgery knows live in a GGUF model: the projections of each layer, and what is left alone."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.architectures import REFUSED, of_layer
from pipeline.errors import SurgeryError, UsageError
from pipeline.feed_forward import Blocks, feed_forward_blocks, output_projection
from pipeline.gguf_file.reader import GGUFModel
from pipeline.layer_tensors import UNCOMPUTED, layer_projections
from pipeline.projection import OWN, ROLES, Projection
from pipeline.targets import ATTENTION, FEED_FORWARD, QKV

__all__ = [
    "ROLES",
    "AttentionMap",
    "Projection",
    "find_attention",
    "find_projections",
    "number_ranges",
    "of_layer",
    "parse_layers",
    "read_projection",
]

ORDINARY = "surgery needs a model with ordinary attention, such as Llama, Mistral or Qwen"


@dataclass(frozen=True)
class AttentionMap:
    """`layers` maps a layer's number to its projections by role; `skipped` those left alone, or in part, to the reason.

    `beside` maps a layer's number to the feed-forward blocks that it has beside its own: experts.
    """

    layers: dict[int, dict[str, Projection]]
    skipped: dict[int, str]
    beside: dict[int, Blocks] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether q, k and v of every layer are one matrix each."""
        return all(projections.keys() == set(ROLES) for projections in self.layers.values())

    def require_plain(self, model: GGUFModel, purpose: str) -> None:
        """Raise SurgeryError where q, k and v of a layer are not one matrix each, for what needs that."""
        for number, projections in self.layers.items():
            if projections.keys() != set(ROLES):
                raise SurgeryError(
                    f"{model.path}: q, k and v of layer {number} are made by {', '.join(projections)}; {purpose} needs"
                    " one matrix each"
                )


def find_attention(model: GGUFModel) -> AttentionMap:
    """Find the projections of every layer, each decided by its own tensors and head counts.

    Separate (`attn_q`, `attn_k`, `attn_v`), fused (`attn_qkv`), or made of latents (`attn_q_a`, `attn_kv_a_mqa`, ...).
    Raises SurgeryError when no layer has them, when what a tensor means is not known, when a shape contradicts the head
    counts or the embedding's length, or when there cannot be as many layers as the metadata say.
    """
    if model.architecture in REFUSED:
        raise SurgeryError(f"{model.path}: a {model.architecture} model is {REFUSED[model.architecture]}; {ORDINARY}")
    count, most = model.hyperparameter("block_count"), len(model.tensors)
    if count is not None and not (type(count) is int and 1 <= count <= most):
        raise SurgeryError(
            f"{model.path}: {model.architecture}.block_count is {repr(count)[:40]}; expected a number of layers,"
            f" at least 1 and at most that of its tensors, {most}; the file is damaged, get it anew"
        )
    layers, skipped = {}, {}
    for layer in range(count or 0):
        projections = layer_projections(model, layer, count or 0)
        if isinstance(projections, str):
            skipped[layer] = projections
        else:
            layers[layer] = projections
    if not layers:
        raise SurgeryError(
            f"{model.path}: no layer of this {model.architecture or 'unnamed'} model has attn_q, attn_k and attn_v"
            f" (or attn_qkv) weights of softmax attention; {ORDINARY}"
        )
    return AttentionMap(layers, skipped)


def find_projections(model: GGUFModel, roles: Collection[str]) -> AttentionMap:
    """As `find_attention`; if any of the `roles`, members of TARGETS, is beyond q, k and v, with o, gate, up and down.

    o is that of layers with attention. What is left alone is said of the parts that have any of the `roles`. Raises as
    `find_attention` and `feed_forward_blocks` do.
    """
    attention = find_attention(model)
    if QKV.issuperset(roles):
        return attention
    layers, skipped, beside = {}, {}, {}
    for layer in range(model.hyperparameter("block_count")):
        found, left = dict(attention.layers.get(layer, {})), attention.skipped.get(layer, "")
        reasons = [left] if not set(ATTENTION).isdisjoint(roles) else []
        if found:
            found |= output_projection(model, layer)
        if left != UNCOMPUTED:
            blocks, left = feed_forward_blocks(model, layer)
            found |= blocks.pop(OWN, {})
            if blocks:
                beside[layer] = blocks
        if not set(FEED_FORWARD).isdisjoint(roles):
            reasons.append(left)
        if found or layer in beside:
            layers[layer] = found
        if reason := "; ".join(dict.fromkeys(filter(None, reasons))):
            skipped[layer] = reason
    return AttentionMap(layers, skipped, beside)


def read_projection(model: GGUFModel, projection: Projection) -> np.ndarray:
    """A projection's weights, float32 of shape (out_features, in_features)."""
    tensor, expert = projection.tensor, projection.block.expert
    return projection.take(model.read(tensor) if expert is None else model.read(tensor, expert))


def parse_layers(
    text: str, available: Iterable[int], argument: str = "layers", *, skipped: Mapping[int, str] | None = None
) -> list[int]:
    """The layer numbers that `text`, such as `0-10,12` or `all`, names among `available`, in order.

    Raises UsageError, which names `argument`, for anything else, and for a layer that has no attention to operate on,
    for the reason that `skipped` gives.
    """
    available = sorted(available)
    if text == "all":
        return available
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageError.of(argument, text, f"{part!r} is neither a number nor a range; write for example 0-10,12")
        first, last = int(match[1]), int(match[2] or match[1])
        if unknown := [layer for layer in (first, last) if layer not in available]:
            reason = (skipped or {}).get(unknown[0])
            why = f"layer {unknown[0]} has no q, k and v" + (f" to operate on: {reason}" if reason else "")
            raise UsageError.of(argument, text, f"{why}; this model has them in {number_ranges(available)}")
        chosen |= set(range(first, last + 1)) & set(available)
    return sorted(chosen)


def number_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `parse_layers` reads them: 0-2,5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
