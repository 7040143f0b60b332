"""What `pipeline.subspaces.similarity` found, at the few ranks that pictures draw: small enough for the ledger of a study.

For 30 layers some 80 kB as JSON. All shares are in [0, 1], to five decimals.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.subspaces.similarity import mean_of_pairs

POINTS = 48  # at most, on a line: ranks crowd at the low end, where lines bend


def spectrum_outline(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Explained variance by group such as `kv`: its `ranks` (R,) and the `shares` at them, (layers, R).

    A group that only some of the layers have names its `layers`.
    `layers` are from `pipeline.subspaces.similarity.spectrum`.
    """
    groups = {}
    for group in dict.fromkeys(group for layer in layers for group in layer["explained"]):
        found = {layer["layer"]: layer["explained"][group] for layer in layers if group in layer["explained"]}
        ranks = drawn_ranks([*found.values()])
        groups[group] = {"ranks": ranks, "shares": [_at(shares, ranks) for shares in found.values()]}
        if len(found) < len(layers):
            groups[group]["layers"] = [*found]
    return {"layers": [layer["layer"] for layer in layers], "groups": groups}


def overlap_outline(overlap: dict[str, Any]) -> dict[str, Any]:
    """`within` and `between` of `similarity.overlap`, as `within_outline` and `between_outline` have them."""
    within, between = overlap["within"], overlap["between"]
    return {"within": within_outline(within, between["columns"]), "between": between_outline(between)}


def within_outline(layers: Sequence[dict[str, Any]], columns: int) -> dict[str, Any]:
    """Energy of v in k's leading directions (`v_in_k`) and the reverse: `ranks` (R,) and the `shares`, (layers, R).

    `layers` are from `similarity.energies_within`. Beside them means over layers, (R,): `own`, the share in its
    own leading directions, which nothing can exceed; `random_weights`, that in those of random weights; and `random`,
    that of a random subspace of inputs that are `columns` wide.
    """
    return {
        "layers": [layer["layer"] for layer in layers],
        **{f"{role}_in_{of}": _within(layers, columns, role, of) for role, of in ("vk", "kv")},
    }


def between_outline(compared: dict[str, Any]) -> dict[str, Any]:
    """The overlaps of pairs of layers by rank: for each one `pairs`, a list a layer with those before it.

    `compared` is from `similarity.compared_layers`. Beside them what random subspaces have (`random`) and the
    mean over pairs of what random weights have (`random_weights`).
    """
    found = zip(*(compared[key] for key in ("ranks", "random", "random_weights", "overlap")), strict=True)
    ranks = [
        {
            "rank": rank,
            "random": round(random, 5),
            "random_weights": round(mean_of_pairs(weights), 5),
            "pairs": [np.round(row[:index], 5).tolist() for index, row in enumerate(overlap)],
        }
        for rank, random, weights, overlap in found
    ]
    return {"layers": compared["layers"], "ranks": ranks}


def drawn_ranks(lines: Sequence[Sequence[float]]) -> list[int]:
    """At most POINTS ranks from 1 to the full rank of the longest line, denser at the low end."""
    full = max(map(len, lines))
    return sorted({round(rank) for rank in np.geomspace(1, full, POINTS)})


def _within(layers: Sequence[dict[str, Any]], columns: int, role: str, of: str) -> dict[str, Any]:
    found = [layer[f"{role}_in_{of}"] for layer in layers]
    ranks = drawn_ranks(found)
    own, weights = (
        np.mean([_at(layer[f"{role}_in_{name}"], ranks) for layer in layers], axis=0) for name in (role, "random")
    )
    return {
        "ranks": ranks,
        "shares": [_at(shares, ranks) for shares in found],
        "own": np.round(own, 5).tolist(),
        "random_weights": np.round(weights, 5).tolist(),
        "random": [round(rank / columns, 5) for rank in ranks],
    }


def _at(shares: Sequence[float], ranks: Sequence[int]) -> list[float]:
    """Cumulative shares at `ranks`; beyond the full rank nothing is added."""
    return [round(float(shares[min(rank, len(shares)) - 1]), 5) for rank in ranks]
