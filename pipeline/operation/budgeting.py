"""Ranks for budgets: which layers and groups the stored numbers are worth most in."""

from collections.abc import Sequence

import numpy as np

from pipeline.calibration.statistics_file import Calibration
from pipeline.decompose.budget import spread_budget
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.groups import Group, Layers
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import decompose_group


def budgeted_ranks(
    model: GGUFModel, layers: Layers, groups: Sequence[Group], plans: Sequence[Plan], calibration: Calibration | None
) -> list[dict[Group, int]]:
    """For each of `plans`, the rank of each group that keeps `plan.budget` of the stored numbers; {} without a budget.

    The damage that a component saves is its energy: under the metric `attention` in nats, under others, which know no
    unit that layers share, as a share of its group's. A group is decomposed here and again when it is rebuilt, so that
    only one is held at a time.
    """
    if not any(plan.budget for plan in plans):
        return [{} for _ in plans]
    damages = []
    for group in groups:
        components = decompose_group(model, layers, group, plans, calibration).components
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
