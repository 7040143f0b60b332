"""A group that spans layers, decomposed and rebuilt a layer at a time: never in memory as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.calibration.metrics import layer_metric
from pipeline.decompose.cross_layer import (
    CrossLayerComponents,
    WeightedCrossLayerComponents,
    cross_layer_components,
    weighted_cross_layer_components,
)
from pipeline.decompose.weighted import Metric
from pipeline.layers import AttentionLayers
from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan
from pipeline.resources import on_disk

LARGEST_IN_MEMORY = 1 << 30  # bytes of terms; more go to a temporary file


@dataclass(frozen=True)
class LayerRows:
    """The members' rows of a layer and what was rebuilt of them, float32 (n, d)."""

    number: int
    rows: np.ndarray
    rebuilt: np.ndarray


@dataclass(frozen=True)
class GroupRows:
    """The rows of a group's layers, float32 (n, d), read anew each time they are gone through."""

    layers: AttentionLayers
    group: Group

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in self.group.layers:
            layer = self.layers[number]  # held while its metric is made beside it
            yield layer.stacked(self.group.roles)


@dataclass(frozen=True)
class GroupMetrics:
    """The metrics of a group's layers, made anew each time they are gone through."""

    layers: AttentionLayers
    group: Group
    name: str

    def __iter__(self) -> Iterator[Metric]:
        for number in self.group.layers:
            metric = layer_metric(self.name, self.layers[number], self.group.roles)
            assert metric is not None  # `weights` has a decomposition of its own
            yield metric


@dataclass(frozen=True)
class CrossLayerDecomposition:
    """A group of several layers and the directions that they share; `metrics` is None for the metric `weights`."""

    group: Group
    rows: GroupRows
    components: CrossLayerComponents
    metrics: GroupMetrics | None

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


def decompose_across(layers: AttentionLayers, group: Group, plans: Sequence[Plan]) -> CrossLayerDecomposition:
    """Decompose a group that spans layers once for `plans`, which may differ in threshold, rank and budget alone."""
    plan, rows = plans[0], GroupRows(layers, group)
    if plan.metric == "weights":
        components = cross_layer_components(rows, plan.mean, largest_share(plans))
        return CrossLayerDecomposition(group, rows, components, None)
    metrics = GroupMetrics(layers, group, plan.metric)
    terms = group.columns * (group.rows + group.columns * len(group.layers)) * np.dtype(np.float64).itemsize
    keep = on_disk if terms > LARGEST_IN_MEMORY else np.asarray
    return CrossLayerDecomposition(
        group, rows, weighted_cross_layer_components(rows, metrics, plan.mean, keep), metrics
    )


def largest_share(plans: Sequence[Plan]) -> float:
    """The share of the variance whose components suffice for all of `plans`."""
    return max(1.0 if plan.threshold is None else plan.threshold for plan in plans)
