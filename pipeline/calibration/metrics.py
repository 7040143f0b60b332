"""The metrics by name, and how each is made for projections of a layer from the model and its calibration."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.calibration.output_blocks import output_blocks
from pipeline.decompose.attention_metric import energy
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
        lambda: _balanced(layer.rows(role), layer.moments(role).attended, output_blocks(layer, role)),
    )


_METRICS: dict[str, tuple[Callable[[Layer, str], Metric], Callable[[Layer, str], float]]] = {
    "inputs": (inputs_metric, lambda layer, role: 1.0),
    "attention": (attention_metric, Layer.sensitivity),
}
"""How a metric is made for one projection, and what its errors count beside those of others."""


def _balanced(rows: np.ndarray, inputs: np.ndarray, blocks: list[np.ndarray]) -> Metric:
    scale = energy(rows.astype(np.float64), inputs, blocks)
    return Metric(inputs, [block / scale for block in blocks])
