"""A group that spans layers or experts, decomposed and rebuilt one at a time: never in memory as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from native.on_disk import on_disk
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
from pipeline.projection import Block

LARGEST_IN_MEMORY = 1 << 30  # bytes of terms; more go to a temporary file


@dataclass(frozen=True)
class LayerRows:
    """The members' rows of one of a group's units and what was rebuilt of them, float32 (n, d)."""

    unit: tuple[int, Block]
    rows: np.ndarray
    rebuilt: np.ndarray


@dataclass(frozen=True)
class GroupRows:
    """The rows of a group's units, float32 (n, d), read anew each time they are gone through."""

    layers: AttentionLayers
    group: Group

    def __iter__(self) -> Iterator[np.ndarray]:
        for unit in self.group.units:
            layer = self.layers.block(*unit)  # held while its metric is made beside it
            yield layer.stacked(self.group.roles)


@dataclass(frozen=True)
class GroupMetrics:
    """The metrics of a group's units, made anew each time they are gone through."""

    layers: AttentionLayers
    group: Group
    name: str

    def __iter__(self) -> Iterator[Metric]:
        for unit in self.group.units:
            metric = layer_metric(self.name, self.layers.block(*unit), self.group.roles)
            assert metric is not None  # `weights` has a decomposition of its own
            yield metric


@dataclass(frozen=True)
class CrossLayerDecomposition:
    """A group of several layers or experts and the directions that they share; `metrics` is None for `weights`."""

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
        units = self.group.units
        for unit, rows, metric in zip(units, self.rows, self.metrics or [None] * len(units), strict=True):
            yield LayerRows(unit, rows, components.project(rows, rank, metric))


def decompose_across(layers: AttentionLayers, group: Group, plans: Sequence[Plan]) -> CrossLayerDecomposition:
    """Decompose a group of several units once for `plans`, which may differ in threshold, rank and budget alone."""
    plan, rows = plans[0], GroupRows(layers, group)
    if plan.metric == "weights":
        components = cross_layer_components(rows, plan.mean, largest_share(plans))
        return CrossLayerDecomposition(group, rows, components, None)
    metrics = GroupMetrics(layers, group, plan.metric)
    terms = group.columns * (group.rows + group.columns * len(group.units)) * np.dtype(np.float64).itemsize
    keep = on_disk if terms > LARGEST_IN_MEMORY else np.asarray
    return CrossLayerDecomposition(
        group, rows, weighted_cross_layer_components(rows, metrics, plan.mean, keep), metrics
    )


def largest_share(plans: Sequence[Plan]) -> float:
    """The share of the variance whose components suffice for all of `plans`."""
    return max(1.0 if plan.threshold is None else plan.threshold for plan in plans)
