"""Spread one budget of stored numbers over many groups, where it saves the most damage."""

from collections.abc import Sequence

import numpy as np


def spread_budget(damages: Sequence[np.ndarray], costs: Sequence[int], budget: float) -> list[int]:
    """The rank of each group that minimises the damage left, for at most `budget` stored numbers.

    `damages[g]`, (m,), not negative and descending: what each further component of group g saves; `costs[g]`: the
    numbers that a component takes. Every group keeps at least one component, also when the budget does not suffice.
    Minimises sum_g sum_{i >= rank_g} damages[g][i]: components are bought by damage saved per number, which is optimal
    but for the last purchase, since savings descend (Everett, Generalized Lagrange multiplier method, 1963).
    """
    ranks = [1] * len(costs)
    left = budget - sum(costs)
    group = np.concatenate([np.full(len(d) - 1, g) for g, d in enumerate(damages)])
    value = np.concatenate([d[1:] / cost for d, cost in zip(damages, costs, strict=True)])
    for g in group[np.argsort(-value, kind="stable")].tolist():
        if costs[g] <= left:
            ranks[g], left = ranks[g] + 1, left - costs[g]
    return ranks
