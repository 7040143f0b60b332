"""Ranks for budgets: which layers and groups the stored numbers are worth most in."""

import numpy as np

from pipeline.decompose.budget import spread_budget
from pipeline.operation.decomposer import Decomposer
from pipeline.operation.groups import Group


def budgeted_ranks(decomposer: Decomposer) -> list[dict[Group, int]]:
    """For each plan, the rank of each group that keeps `plan.budget` of the stored numbers; {} without a budget.

    A group of full rank is to be left whole, as it is, which takes fewer numbers than all its components would.

    The damage that a component saves is its energy: under the metric `attention` in nats, under others, which know no
    unit that layers share, as a share of its group's. Without a
    budget nothing is decomposed.
    """
    plans, groups = decomposer.plans, decomposer.groups
    if not any(plan.budget for plan in plans):
        return [{} for _ in plans]
    damages = []
    for decomposition in decomposer.kept_decompositions():
        if decomposition is None:  # nothing is to be taken away
            return [{} for _ in plans]
        components = decomposition.components
        whole = 1.0 if plans[0].metric == "attention" else components.total or 1.0
        energies = np.sort(components.energies[: components.full_rank])[::-1]  # of shared directions not in order
        damages.append(energies / whole)
    result = []
    for plan in plans:
        fixed = [group.stored_numbers(plan, 0) for group in groups]
        costs = [group.stored_numbers(plan, 1) - none for group, none in zip(groups, fixed, strict=True)]
        dense = [group.dense_numbers(plan) for group in groups]
        budget = (plan.budget or 1.0) * sum(dense)
        ranks = spread_budget(damages, costs, budget, fixed=fixed, whole=dense if plan.mean != "drop" else None)
        result.append(dict(zip(groups, ranks, strict=True)) if plan.budget else {})
    return result
