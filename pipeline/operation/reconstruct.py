"""One group of projections decomposed under a plan's metric, ready to be rebuilt from some of its components."""

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
from pipeline.operation.plan import Plan


@dataclass(frozen=True)
class GroupDecomposition:
    """The stacked rows of a group, float32 (n, d), and their components; `weighted` is None for the metric `weights`."""

    stack: np.ndarray
    components: RowDecomposition
    weighted: WeightedRows | None

    def reconstruct(self, rank: int) -> np.ndarray:
        """The rows from their first `rank` components: (n, d) float32."""
        rebuilt = self.components.reconstruct(rank)
        return rebuilt if self.weighted is None else self.weighted.restore(rebuilt)


def decompose_group(
    model: GGUFModel, layer: dict[str, Projection], group: str, plan: Plan, calibration: Calibration | None
) -> GroupDecomposition:
    """Decompose the projections of `layer` that `group` names, such as `kv`, under the plan's metric and mean.

    `calibration` is needed for every metric but `weights`. Raises SurgeryError when a tensor cannot be read.
    """
    stack = np.vstack([read_projection(model, layer[role]) for role in group])
    if plan.metric == "weights":
        return GroupDecomposition(stack, principal_components(stack, plan.mean, share=plan.threshold or 1.0), None)
    assert calibration is not None  # `operate` checks
    weighted = weigh_rows(stack, group_metric(plan.metric, model, calibration, layer, group), plan.mean)
    return GroupDecomposition(stack, principal_components(weighted.rows, "none"), weighted)


def choose_rank(
    decomposition: GroupDecomposition, plan: Plan, rank: int | None, layer: int
) -> tuple[GroupDecomposition, int]:
    """The rank that the plan asks for, or `rank` if a budget set it; the control's basis is replaced by a random one."""
    components = decomposition.components
    if rank is None:
        rank = plan.rank if plan.threshold is None else components.rank_for(plan.threshold)
    assert rank is not None  # Plan holds one of the two, or a budget
    if METHODS[plan.method].random:
        seed = np.random.SeedSequence([plan.seed, layer, len(decomposition.stack)])
        decomposition = replace(decomposition, components=random_subspace(components, rank, seed))
    return decomposition, rank
