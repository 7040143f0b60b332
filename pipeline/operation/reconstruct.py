"""One group of projections decomposed under a plan's metric, and rebuilt from some of its components."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.attention import Projection
from pipeline.calibration.metrics import layer_metric
from pipeline.decompose.methods import METHODS
from pipeline.decompose.principal_components import RowDecomposition, principal_components
from pipeline.decompose.random_subspace import random_subspace
from pipeline.decompose.weighted import WeightedRows, weigh_rows
from pipeline.layers import AttentionLayers
from pipeline.operation.cross_layer import (
    CrossLayerDecomposition,
    LayerRows,
    decompose_across,
    largest_share,
)
from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan


@dataclass(frozen=True)
class GroupDecomposition:
    """The stacked rows of a group, float32 (n, d), and their components; `weighted` is None for the metric `weights`."""

    group: Group
    stack: np.ndarray
    components: RowDecomposition
    weighted: WeightedRows | None

    def layers(self, rank: int) -> tuple[float, Iterator[LayerRows]]:
        """The share of the variance that `rank` components keep, and the layer rebuilt from them."""
        if self.weighted is None:
            rebuilt = self.components.reconstruct(rank)
        else:
            rebuilt = self.weighted.restore(*self.components.factors(rank))
        return self.components.explained(rank), iter([LayerRows(self.group.units[0], self.stack, rebuilt)])

    def randomised(self, rank: int, seed: int) -> "GroupDecomposition":
        """The control: the basis replaced by a random one of this rank, drawn for this group of this layer."""
        name = f"{self.group.block} {self.group.name}"
        sequence = np.random.SeedSequence([seed, self.group.layer, *name.encode()])
        return replace(self, components=random_subspace(self.components, rank, sequence))


Decomposition = GroupDecomposition | CrossLayerDecomposition


@dataclass(frozen=True)
class RebuiltMatrix:
    """A projection replaced: `values`, float32 (rows, columns); squares of the norms of its error and of itself."""

    projection: Projection
    values: np.ndarray
    error: float
    energy: float


@dataclass(frozen=True)
class RebuiltGroup:
    """A group rebuilt under a plan: the `matrices` of the members that the plan replaces, each rebuilt as it is asked for.

    `explained` is the share of the group's variance that is kept. Of a group that is left `whole` there is no matrix.
    """

    group: Group
    rank: int
    explained: float
    matrices: Iterable[RebuiltMatrix]
    whole: bool = False


def decompose_group(layers: AttentionLayers, group: Group, plans: Sequence[Plan]) -> Decomposition | None:
    """Decompose a group once for `plans`, which may differ in threshold, rank and budget alone; None if all keep everything.

    `layers` are calibrated for every metric but `weights`. Raises SurgeryError when a tensor cannot be read, or its
    squares overflow.
    """
    if all(plan.keeps_everything(group.full_rank) for plan in plans):
        return None
    plan = plans[0]
    if len(group.units) > 1:
        return decompose_across(layers, group, plans)
    layer = layers.block(*group.units[0])
    stack, metric = layer.stacked(group.roles), layer_metric(plan.metric, layer, group.roles)
    if metric is None:
        return GroupDecomposition(group, stack, principal_components(stack, plan.mean, largest_share(plans)), None)
    weighted = weigh_rows(stack, metric, plan.mean)
    return GroupDecomposition(group, stack, principal_components(weighted.rows, "none"), weighted)


def left_whole(group: Group, plan: Plan, budgeted: Mapping[Group, int]) -> bool:
    """Whether a group loses nothing under a plan, so that its bytes can stay; `budgeted` has the ranks that a budget gave."""
    budgeted_whole = plan.mean != "drop" and budgeted.get(group) == group.full_rank
    return budgeted_whole or plan.keeps_everything(group.full_rank)


def rebuild_group(
    group: Group, decomposition: Decomposition | None, plan: Plan, budgeted: Mapping[Group, int]
) -> RebuiltGroup:
    """Rebuild a group under a plan from the decomposition that `decompose_group` gave for it, perhaps with others.

    It may be None where the plan keeps everything. `budgeted` as `left_whole` has it.
    """
    if left_whole(group, plan, budgeted):
        return RebuiltGroup(group, group.full_rank, 1.0, [], whole=True)
    assert decomposition is not None
    return _rebuild(decomposition, plan, budgeted[group] if plan.budget else _rank(decomposition, plan))


def _rank(decomposition: Decomposition, plan: Plan) -> int:
    """The rank that the plan's threshold or its fixed rank asks for."""
    rank = plan.rank if plan.threshold is None else decomposition.components.rank_for(plan.threshold)
    assert rank is not None  # a budget's ranks are not the group's own affair
    return rank


def _rebuild(decomposition: Decomposition, plan: Plan, rank: int) -> RebuiltGroup:
    if METHODS[plan.method].random:
        assert isinstance(decomposition, GroupDecomposition)
        decomposition = decomposition.randomised(rank, plan.seed)
    explained, layers = decomposition.layers(rank)
    return RebuiltGroup(decomposition.group, rank, explained, _replaced(decomposition.group, plan, layers))


def _replaced(group: Group, plan: Plan, layers: Iterable[LayerRows]) -> Iterator[RebuiltMatrix]:
    for layer in layers:
        start = 0
        for projection in group.of_unit(layer.unit):
            rows = slice(start, start + projection.rows)
            start = rows.stop
            if projection.is_target(plan.roles):
                values, original = layer.rebuilt[rows], layer.rows[rows]
                error, energy = (float(np.linalg.norm(part)) ** 2 for part in (values - original, original))
                yield RebuiltMatrix(projection, values, error, energy)
