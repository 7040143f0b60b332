"""Spread one budget of stored numbers over many groups, where it saves the most damage."""

from collections.abc import Sequence

import numpy as np


def spread_budget(
    damages: Sequence[np.ndarray],
    costs: Sequence[int],
    budget: float,
    *,
    fixed: Sequence[int] | None = None,
    whole: Sequence[int] | None = None,
) -> list[int]:
    """The rank of each group that minimises the damage left, for at most `budget` stored numbers.

    `damages[g]`, (m,), not negative and descending: what each further component of group g saves; `costs[g]`: the
    numbers that a component takes, beside the `fixed[g]` that all of them need. A group that is left whole, for
    `whole[g]` numbers, has lost nothing: its rank is m, which components, of more numbers in all, do not reach;
    without `whole` none is. Every group keeps at least one component, also when the budget does not suffice.

    Minimises sum_g sum_{i >= rank_g} damages[g][i]: what saves the most damage a number is bought first, the next component
    of a group or, from the rank on where that saves more, what makes it whole. This is the lower convex hull of what can be
    had, so the choice is optimal but for the last purchase (Everett, Generalized Lagrange multiplier method, 1963).
    """
    fixed = fixed or [0] * len(costs)
    ranks = [1] * len(costs)
    left = budget - sum(fixed) - sum(costs)
    components = [d[1:] / cost for d, cost in zip(damages, costs, strict=True)]
    group = np.concatenate([np.full(len(values), g) for g, values in enumerate(components)])
    value = np.concatenate(components)
    if whole:
        group = np.append(group, np.arange(len(costs)))
        wholly = [_saved_by_whole(*each) for each in zip(damages, costs, np.subtract(whole, fixed), strict=True)]
        value = np.append(value, wholly)
    for index in np.argsort(-value, kind="stable").tolist():
        g = int(group[index])
        single = index < len(value) - len(whole or ())
        rank = ranks[g] + 1 if single else len(damages[g])
        price = costs[g] if single or not whole else whole[g] - fixed[g] - ranks[g] * costs[g]
        if ranks[g] < rank <= len(damages[g]) and price <= left:
            ranks[g], left = rank, left - price
    return ranks


def _saved_by_whole(damages: np.ndarray, cost: int, whole: int) -> float:
    """The damage a number that is saved by leaving a group whole instead of at the rank from which that pays."""
    lost = damages[::-1].cumsum()[::-1][1:]  # at rank 1, 2, ...
    price = whole - cost * np.arange(1, len(damages))
    return float((lost[price > 0] / price[price > 0]).min()) if len(price) and price[0] > 0 else np.inf
