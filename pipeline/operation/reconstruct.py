"""One group of projections decomposed under a plan's metric, and rebuilt from some of its components."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.attention import Projection, read_projection
from pipeline.calibration.metrics import group_metric
from pipeline.calibration.statistics_file import Calibration
from pipeline.decompose.methods import METHODS
from pipeline.decompose.principal_components import RowDecomposition, principal_components
from pipeline.decompose.random_subspace import random_subspace
from pipeline.decompose.weighted import WeightedRows, weigh_rows
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan

Layers = Mapping[int, dict[str, Projection]]


@dataclass(frozen=True)
class GroupDecomposition:
    """The stacked rows of a group, float32 (n, d), and their components; `weighted` is None for the metric `weights`."""

    group: Group
    stack: np.ndarray
    components: RowDecomposition
    weighted: WeightedRows | None

    def reconstruct(self, rank: int) -> np.ndarray:
        """The rows from their first `rank` components: (n, d) float32."""
        rebuilt = self.components.reconstruct(rank)
        return rebuilt if self.weighted is None else self.weighted.restore(rebuilt)

    def rank(self, plan: Plan) -> int:
        """The rank that the plan's threshold or its fixed rank asks for."""
        rank = plan.rank if plan.threshold is None else self.components.rank_for(plan.threshold)
        assert rank is not None  # a budget's ranks are not the group's own affair
        return rank

    def randomised(self, rank: int, seed: int) -> "GroupDecomposition":
        """The control: the basis replaced by a random one of this rank."""
        sequence = np.random.SeedSequence([seed, self.group.layer, len(self.stack)])
        return replace(self, components=random_subspace(self.components, rank, sequence))


@dataclass(frozen=True)
class RebuiltGroup:
    """A group rebuilt under a plan: `matrices`, float32 (rows, columns), of the members that the plan replaces.

    `explained` is the share of the group's variance that is kept; `relative_error` maps each replaced matrix to
    |A' - A| / |A| (Frobenius norms, before rounding to the tensor's type).
    """

    group: Group
    rank: int
    explained: float
    relative_error: dict[str, float]
    matrices: dict[Projection, np.ndarray]


def decompose_group(
    model: GGUFModel, layers: Layers, group: Group, plans: Sequence[Plan], calibration: Calibration | None
) -> GroupDecomposition:
    """Decompose a group once for `plans`, which may differ in threshold, rank and budget alone.

    `layers` are all projections of the model; `calibration` is needed for every metric but `weights`. Raises
    SurgeryError when a tensor cannot be read.
    """
    plan = plans[0]
    stack = np.vstack([read_projection(model, projection) for projection in group.members])
    if plan.metric == "weights":
        share = max(1.0 if plan.threshold is None else plan.threshold for plan in plans)
        return GroupDecomposition(group, stack, principal_components(stack, plan.mean, share), None)
    assert calibration is not None  # `operate` checks
    metric = group_metric(plan.metric, model, calibration, layers[group.layer], group.roles)
    weighted = weigh_rows(stack, metric, plan.mean)
    return GroupDecomposition(group, stack, principal_components(weighted.rows, "none"), weighted)


def rebuild_group(
    model: GGUFModel,
    layers: Layers,
    group: Group,
    plans: Sequence[Plan],
    calibration: Calibration | None,
    budgeted: Sequence[Mapping[Group, int]],
) -> Iterator[RebuiltGroup]:
    """Rebuild a group under each of `plans`, in their order, from one decomposition, as `decompose_group` needs them.

    `budgeted` holds the ranks that a budget gave, for each plan.
    """
    decomposition = None
    for plan, ranks in zip(plans, budgeted, strict=True):
        if plan.keeps_everything(group.full_rank):
            unchanged = {projection.role: 0.0 for projection in group.targets(plan)}
            yield RebuiltGroup(group, group.full_rank, 1.0, unchanged, {})
            continue
        if decomposition is None:
            decomposition = decompose_group(model, layers, group, plans, calibration)
        yield _rebuild(decomposition, plan, ranks[group] if plan.budget else decomposition.rank(plan))


def _rebuild(decomposition: GroupDecomposition, plan: Plan, rank: int) -> RebuiltGroup:
    if METHODS[plan.method].random:
        decomposition = decomposition.randomised(rank, plan.seed)
    rebuilt = decomposition.reconstruct(rank)
    errors, matrices, start = {}, {}, 0
    for projection in decomposition.group.members:
        rows = slice(start, start + projection.rows)
        start = rows.stop
        if projection.role in plan.targets:
            original = decomposition.stack[rows]
            matrices[projection] = rebuilt[rows]
            norm = np.linalg.norm(original)
            errors[projection.role] = float(np.linalg.norm(rebuilt[rows] - original) / norm) if norm else 0.0
    return RebuiltGroup(decomposition.group, rank, decomposition.components.explained(rank), errors, matrices)
