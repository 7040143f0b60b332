"""The metrics by name, and how each is made for projections of a layer from the model and its calibration."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.calibration.output_blocks import output_blocks
from pipeline.decompose.attention_metric import energy
from pipeline.decompose.weighted import Metric, ResultMetric, triangular_root
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
    return _balanced(layer, role, [np.ones(layer.projections[role].rows)], attended=False)


def attention_metric(layer: Layer, role: str) -> Metric:
    """The metric `attention` of one projection, such that the projection itself has energy 1.

    Of what reads the inputs of attention M is the second moment of all inputs plus that of inputs weighted by the
    attention that they receive, each divided by its trace: the first is what every direction is worth, the second sees
    to the tokens that attention rests on. Of the others it is the first.
    """

    def make() -> Metric:
        return _balanced(layer, role, output_blocks(layer, role), attended=layer.projections[role].attended)

    return layer.once(("attention metric", role), make)


_METRICS: dict[str, tuple[Callable[[Layer, str], Metric], Callable[[Layer, str], float]]] = {
    "inputs": (inputs_metric, lambda layer, role: 1.0),
    "attention": (attention_metric, Layer.sensitivity),
}
"""How a metric is made for one projection, and what its errors count beside those of others."""


def _balanced(layer: Layer, role: str, blocks: list[np.ndarray], *, attended: bool) -> Metric:
    """By the moment of a projection's inputs, `attended` or of all, or, where that is not observed, of what it makes of them.

    Roles of one layer that read the same have one root of it.
    """
    projection, rows, moments = layer.projections[role], layer.rows(role), layer.moments(role)
    moment = moments.attended if attended else moments.inputs
    root = layer.once(("root", projection.input, attended), lambda: triangular_root(moment))
    if attended:
        scale = energy(rows.astype(np.float64), moment, blocks)
    else:  # all blocks are diagonal
        scale = float(np.concatenate(blocks) @ layer.result_energies(role))
    balanced = [block / (scale if scale >= np.finfo(float).tiny else 1.0) for block in blocks]
    return ResultMetric(moment, balanced, root, rows=rows) if projection.by_result else Metric(moment, balanced, root)
