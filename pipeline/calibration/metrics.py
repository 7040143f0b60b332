"""The metrics by name, and how each is made for projections of a layer from the model and its calibration."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.calibration.output_blocks import output_blocks
from pipeline.decompose.attention_metric import energy, result_energy
from pipeline.decompose.weighted import Metric, ResultMetric
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
    return replace(metrics[0], outputs=blocks)


def inputs_metric(layer: Layer, role: str) -> Metric:
    """The metric `inputs` of one projection, such that the projection itself has energy 1."""
    return _balanced(layer, role, layer.moments(role).inputs, [np.ones(layer.projections[role].rows)])


def attention_metric(layer: Layer, role: str) -> Metric:
    """The metric `attention` of one projection, such that the projection itself has energy 1.

    Of what reads the inputs of attention M is the second moment of all inputs plus that of inputs weighted by the
    attention that they receive, each divided by its trace: the first is what every direction is worth, the second sees
    to the tokens that attention rests on. Of the others it is the first.
    """

    def make() -> Metric:
        moments = layer.moments(role)
        inputs = moments.attended if layer.projections[role].attended else moments.inputs
        return _balanced(layer, role, inputs, output_blocks(layer, role))

    return layer.once(("attention metric", role), make)


_METRICS: dict[str, tuple[Callable[[Layer, str], Metric], Callable[[Layer, str], float]]] = {
    "inputs": (inputs_metric, lambda layer, role: 1.0),
    "attention": (attention_metric, Layer.sensitivity),
}
"""How a metric is made for one projection, and what its errors count beside those of others."""


def _balanced(layer: Layer, role: str, moment: np.ndarray, blocks: list[np.ndarray]) -> Metric:
    """Of a projection with the `moment` of its inputs or, where these are not observed, of what it makes of them."""
    rows = layer.rows(role)
    if layer.projections[role].by_result:
        scale = result_energy(moment, blocks)
        return ResultMetric(moment, [block / scale for block in blocks], rows=rows)
    scale = energy(rows.astype(np.float64), moment, blocks)
    return Metric(moment, [block / scale for block in blocks])
