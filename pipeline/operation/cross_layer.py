"""A group that spans layers, decomposed and rebuilt a layer at a time: never in memory as a whole."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.attention import Projection, read_projection
from pipeline.calibration.metrics import group_metric
from pipeline.calibration.statistics_file import Calibration
from pipeline.decompose.cross_layer import (
    CrossLayerComponents,
    WeightedCrossLayerComponents,
    cross_layer_components,
    weighted_cross_layer_components,
)
from pipeline.decompose.weighted import Metric
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.groups import Group, Layers
from pipeline.operation.plan import Plan
from pipeline.resources import on_disk

LARGEST_ENERGY = 1e36  # sum of a projection's squares, with room to add up some hundred in float32
LARGEST_IN_MEMORY = 1 << 30  # bytes of terms; more go to a temporary file


@dataclass(frozen=True)
class LayerRows:
    """The members' rows of a layer and what was rebuilt of them, float32 (n, d)."""

    number: int
    rows: np.ndarray
    rebuilt: np.ndarray


@dataclass(frozen=True)
class StoredRows:
    """The rows of a group's layers, float32 (n, d), read anew each time they are gone through."""

    model: GGUFModel
    group: Group

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in self.group.layers:
            yield stacked_rows(self.model, self.group.of_layer(number))


def stacked_rows(model: GGUFModel, projections: Iterable[Projection]) -> np.ndarray:
    """The rows of one layer's projections, float32 (n, d). Raises SurgeryError where sums of their squares overflow."""
    parts = []
    for projection in projections:
        parts.append(values := read_projection(model, projection))
        if not np.vdot(values, values) < LARGEST_ENERGY:
            raise SurgeryError(
                f"{model.tensors[projection.tensor].path}: tensor {projection.tensor} holds numbers up to"
                f" {np.abs(values).max():.3g}, whose squares overflow; the file is damaged, get it anew"
            )
    return np.vstack(parts)


@dataclass(frozen=True)
class LayerMetrics:
    """The metrics of a group's layers, made anew each time they are gone through."""

    name: str
    model: GGUFModel
    calibration: Calibration
    layers: Layers
    group: Group

    def __iter__(self) -> Iterator[Metric]:
        for number in self.group.layers:
            yield group_metric(self.name, self.model, self.calibration, self.layers[number], self.group.roles)


@dataclass(frozen=True)
class CrossLayerDecomposition:
    """A group of several layers and the directions that they share; `metrics` is None for the metric `weights`."""

    group: Group
    rows: StoredRows
    components: CrossLayerComponents
    metrics: LayerMetrics | None

    def layers(self, rank: int) -> tuple[float, Iterator[LayerRows]]:
        """The share of the variance that `rank` directions keep, refined, and the layers rebuilt from them, one by one."""
        components = self.components
        if isinstance(components, WeightedCrossLayerComponents):
            components = components.refine(rank)
        return components.explained(rank), self._rebuild(components, rank)

    def _rebuild(self, components: CrossLayerComponents, rank: int) -> Iterator[LayerRows]:
        metrics = self.metrics or [None] * len(self.group.layers)
        for number, rows, metric in zip(self.group.layers, self.rows, metrics, strict=True):
            yield LayerRows(number, rows, components.project(rows, rank, metric))


def decompose_layers(
    model: GGUFModel, layers: Layers, group: Group, plans: Sequence[Plan], calibration: Calibration | None
) -> CrossLayerDecomposition:
    """Decompose a group that spans layers once for `plans`, which may differ in threshold, rank and budget alone."""
    plan, rows = plans[0], StoredRows(model, group)
    if plan.metric == "weights":
        components = cross_layer_components(rows, plan.mean, largest_share(plans))
        return CrossLayerDecomposition(group, rows, components, None)
    assert calibration is not None  # `operate` checks
    metrics = LayerMetrics(plan.metric, model, calibration, layers, group)
    terms = group.columns * (group.rows + group.columns * len(group.layers)) * np.dtype(np.float64).itemsize
    keep = on_disk if terms > LARGEST_IN_MEMORY else np.asarray
    return CrossLayerDecomposition(
        group, rows, weighted_cross_layer_components(rows, metrics, plan.mean, keep), metrics
    )


def largest_share(plans: Sequence[Plan]) -> float:
    """The share of the variance whose components suffice for all of `plans`."""
    return max(1.0 if plan.threshold is None else plan.threshold for plan in plans)
