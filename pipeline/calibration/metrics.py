"""The metrics by name, and how each is made for projections of a layer from the model and its calibration."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.decompose.attention_metric import (
    average_over_turns,
    output_moments,
    projected_moments,
    sums_of_groups,
)
from pipeline.decompose.weighted import Metric
from pipeline.layers import Layer


def layer_metric(name: str, layer: Layer, roles: Sequence[str]) -> Metric | None:
    """The metric `name` of the projections `roles` of a layer, blocks in their order; None for the metric `weights`.

    Roles that share components are brought to one unit: an error is measured as a share of the energy of what it is an
    error of, and for `attention` times the nats that such a share was measured to cost, see
    `pipeline.calibration.sensitivity`.
    """
    if name == "weights":
        return None
    make, weight = _METRICS[name]
    metrics = [make(layer, role) for role in roles]
    blocks = [b * weight(layer, r) for r, m in zip(roles, metrics, strict=True) for b in m.outputs or ()]
    return Metric(metrics[0].inputs, blocks)


def inputs_metric(layer: Layer, role: str) -> Metric:
    """The metric `inputs` of one projection, such that the projection itself has energy 1."""
    rows = layer.rows(role)
    return _balanced(rows, layer.moments(role).inputs, [np.eye(len(rows))])


def attention_metric(layer: Layer, role: str) -> Metric:
    """The metric `attention` of one of q, k and v, such that the projection itself has energy 1.

    M is the second moment of all inputs plus that of inputs weighted by the attention that they receive, each divided
    by its trace: the first is what every direction is worth, the second sees to the tokens that attention rests on.
    """
    return layer.once(
        ("attention metric", role),
        lambda: _balanced(layer.rows(role), layer.moments(role).attended, attention_blocks(layer, role)),
    )


_METRICS: dict[str, tuple[Callable[[Layer, str], Metric], Callable[[Layer, str], float]]] = {
    "inputs": (inputs_metric, lambda layer, role: 1.0),
    "attention": (attention_metric, Layer.sensitivity),
}
"""How a metric is made for one projection, and what its errors count beside those of others."""


def attention_blocks(layer: Layer, role: str) -> list[np.ndarray]:
    """The diagonal blocks of L^T L for q, k or v of a layer, a block for each of its heads: see `attention_metric`."""
    heads, kv_heads = layer.heads, layer.kv_heads
    if role == "v":
        return sums_of_groups(output_moments(layer.output(), heads), kv_heads)
    other, count = ("k", kv_heads) if role == "q" else ("q", heads)
    moments = layer.moments(other)
    second = projected_moments(layer.rows(other), moments.inputs, moments.mean, layer.bias(other), count)
    turned = [
        average_over_turns(moment, layer.calibration.rope, layer.rotary_dimensions(len(moment))) for moment in second
    ]
    if role == "k":
        return sums_of_groups(turned, kv_heads)
    return [block for block in turned for _ in range(heads // kv_heads)]


def energy(rows: np.ndarray, inputs: np.ndarray, blocks: list[np.ndarray]) -> float:
    """trace(B A M A^T) for rows A (n, d), M = `inputs` (d, d) and B block diagonal."""
    parts = np.split(rows, np.cumsum([len(block) for block in blocks])[:-1])
    total = sum(float(np.sum((block @ part) * (part @ inputs))) for part, block in zip(parts, blocks, strict=True))
    return max(total, np.finfo(float).tiny)


def _balanced(rows: np.ndarray, inputs: np.ndarray, blocks: list[np.ndarray]) -> Metric:
    scale = energy(rows.astype(np.float64), inputs, blocks)
    return Metric(inputs, [block / scale for block in blocks])
