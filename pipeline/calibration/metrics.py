"""The metrics by name, and how each is made for a group of projections from the model and its calibration."""

from collections.abc import Sequence

import numpy as np

from pipeline.attention import Projection, of_layer, read_projection
from pipeline.calibration.statistics_file import Calibration, LayerMoments
from pipeline.decompose.attention_metric import (
    average_over_turns,
    output_moments,
    projected_moments,
    sums_of_groups,
)
from pipeline.decompose.weighted import Metric
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel


def group_metric(
    name: str, model: GGUFModel, calibration: Calibration, layer: dict[str, Projection], group: Sequence[str]
) -> Metric:
    """The metric of a group such as `q` or `kv` of one layer; the blocks of the group's roles in order.

    Roles that share components are brought to one unit: an error is measured as a share of the energy of what it is an
    error of, and for `attention` times the nats that such a share was measured to cost, see
    `pipeline.calibration.sensitivity`.
    """
    if name == "attention":
        metrics = [role_metric(model, calibration, layer, role) for role in group]
        weights = [calibration.sensitivity(role, layer[role].layer) for role in group]
    else:
        inputs = calibration.layer(layer[group[0]].layer).inputs
        metrics = [_balanced(read_projection(model, layer[role]), inputs, [np.eye(layer[role].rows)]) for role in group]
        weights = [1.0] * len(group)
    blocks = [b * w for m, w in zip(metrics, weights, strict=True) for b in m.outputs or ()]
    return Metric(metrics[0].inputs, blocks)


def role_metric(model: GGUFModel, calibration: Calibration, layer: dict[str, Projection], role: str) -> Metric:
    """The metric `attention` of q, k or v alone, such that the projection itself has energy 1.

    M is the second moment of all inputs plus that of inputs weighted by the attention that they receive, each divided
    by its trace: the first is what every direction is worth, the second sees to the tokens that attention rests on.
    """
    moments = calibration.layer(layer[role].layer)
    inputs = moments.inputs / np.trace(moments.inputs) + moments.received / np.trace(moments.received)
    return _balanced(
        read_projection(model, layer[role]), inputs, role_blocks(role, model, calibration.rope, layer, moments)
    )


def _balanced(rows: np.ndarray, inputs: np.ndarray, blocks: list[np.ndarray]) -> Metric:
    scale = energy(rows.astype(np.float64), inputs, blocks)
    return Metric(inputs, [block / scale for block in blocks])


def energy(rows: np.ndarray, inputs: np.ndarray, blocks: list[np.ndarray]) -> float:
    """trace(B A M A^T) for rows A (n, d), M = `inputs` (d, d) and B block diagonal."""
    parts = np.split(rows, np.cumsum([len(block) for block in blocks])[:-1])
    total = sum(float(np.sum((block @ part) * (part @ inputs))) for part, block in zip(parts, blocks, strict=True))
    return max(total, np.finfo(float).tiny)


def role_blocks(
    role: str, model: GGUFModel, rope: str, layer: dict[str, Projection], moments: LayerMoments
) -> list[np.ndarray]:
    """The diagonal blocks of L^T L for q, k or v of a layer, a block for each of its heads."""
    heads, kv_heads = head_counts(model, layer["q"].layer)
    if role == "v":
        name = f"blk.{layer['v'].layer}.attn_output.weight"
        if name not in model.tensors:
            raise SurgeryError(f"{model.path}: has no tensor {name}; use --metric inputs")
        return sums_of_groups(output_moments(model.read(name), heads), kv_heads)
    other = layer["k" if role == "q" else "q"]
    count = kv_heads if role == "q" else heads
    second = projected_moments(
        read_projection(model, other), moments.inputs, moments.mean, read_bias(model, other), count
    )
    turned = [average_over_turns(moment, rope, rotary_dimensions(model, len(moment))) for moment in second]
    if role == "k":
        return sums_of_groups(turned, kv_heads)
    return [block for block in turned for _ in range(heads // kv_heads)]


def head_counts(model: GGUFModel, layer: int) -> tuple[int, int]:
    """The numbers of query heads and of key/value heads of a layer."""
    heads = model.hyperparameter("attention.head_count", 1)
    kv_heads = model.hyperparameter("attention.head_count_kv", heads)
    return of_layer(heads, layer), of_layer(kv_heads, layer)


def rotary_dimensions(model: GGUFModel, head_size: int) -> int:
    """How many of a head's features RoPE turns."""
    return min(int(model.hyperparameter("rope.dimension_count", head_size)), head_size)


def read_bias(model: GGUFModel, projection: Projection) -> np.ndarray | None:
    """A projection's bias, float32 (out_features,), or None."""
    name = projection.tensor.removesuffix("weight") + "bias"
    return model.read(name)[projection.start : projection.stop] if name in model.tensors else None
