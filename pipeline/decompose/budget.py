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
    group = np.concatenate([np.full(len(d), g) for g, d in enumerate(damages)])
    value = np.concatenate([np.append(np.inf, d[1:] / cost) for d, cost in zip(damages, costs, strict=True)])
    order = np.argsort(-value, kind="stable")
    spent = np.cumsum(np.asarray(costs, float)[group[order]])
    bought = group[order[(spent <= budget) | np.isinf(value[order])]]
    return [int(count) for count in np.bincount(bought, minlength=len(costs))]
