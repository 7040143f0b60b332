"""Ranks for budgets: which layers and groups the stored numbers are worth most in."""

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.decompose.budget import spread_budget
from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import Decomposition


def budgeted_ranks(
    decompositions: Iterable[Decomposition | None], groups: Sequence[Group], plans: Sequence[Plan]
) -> list[dict[Group, int]]:
    """For each of `plans`, the rank of each group that keeps `plan.budget` of the stored numbers; {} without a budget.

    The damage that a component saves is its energy: under the metric `attention` in nats, under others, which know no
    unit that layers share, as a share of its group's. `decompositions`, of the groups in their order, are gone through
    only for a budget, and none is kept: a group is decomposed anew when it is rebuilt.
    """
    if not any(plan.budget for plan in plans):
        return [{} for _ in plans]
    damages = []
    for decomposition in decompositions:
        if decomposition is None:  # nothing is to be taken away
            return [{} for _ in plans]
        components = decomposition.components
        whole = 1.0 if plans[0].metric == "attention" else components.total or 1.0
        energies = np.sort(components.energies[: components.full_rank])[::-1]  # of shared directions not in order
        damages.append(energies / whole)
    result = []
    for plan in plans:
        fixed = sum(group.stored_numbers(plan, 0) for group in groups)
        costs = [group.stored_numbers(plan, 1) - group.stored_numbers(plan, 0) for group in groups]
        dense = sum(group.dense_numbers(plan) for group in groups)
        ranks = spread_budget(damages, costs, plan.budget * dense - fixed) if plan.budget else []
        result.append(dict(zip(groups, ranks, strict=False)))
    return result
