"""What a study knows of its source, made up: its subspaces, and what each layer alone costs."""

import math
from typing import Any

import numpy as np

from tests.made_up_study import LAYERS, made_up_cell

RANKS = {"q": 576, "k": 192, "v": 192, "kv": 384}
COLUMNS = 576


def made_up_subspaces(layers: int = LAYERS) -> dict[str, Any]:
    """By metric, as `pipeline.compare.source_subspaces.outline` gives it."""
    return {
        metric: {
            "calibration_sha256": sha256,
            "spectrum": {"layers": list(range(layers)), "groups": {g: lines(full, layers) for g, full in RANKS.items()}},
            "within": {"layers": list(range(layers)), "v_in_k": within(layers), "k_in_v": within(layers)},
            "between": {"layers": list(range(layers)), "ranks": [overlaps(rank, layers) for rank in (16, 64, 128, 192)]},
        }
        for metric, sha256 in (("weights", ""), ("inputs", "c3" * 32))
    }  # fmt: skip


def lines(full: int, layers: int) -> dict[str, Any]:
    ranks = sorted({round(rank) for rank in np.geomspace(1, full, 48)})
    return {"ranks": ranks, "shares": [[(rank / full) ** (0.3 + n / 100) for rank in ranks] for n in range(layers)]}


def within(layers: int) -> dict[str, Any]:
    found = lines(RANKS["k"], layers)
    random = [rank / COLUMNS for rank in found["ranks"]]
    return {**found, "own": found["shares"][0], "random_weights": random, "random": random}


def overlaps(rank: int, layers: int) -> dict[str, Any]:
    random = rank / COLUMNS
    pairs = [[random + (1 - random) * math.exp(other - one) for other in range(one)] for one in range(layers)]
    return {"rank": rank, "random": random, "random_weights": random, "pairs": pairs}


def made_up_damage(layers: int = LAYERS) -> list[dict[str, Any]]:
    """The cells of `surgery inspect --damage`: q, k and v of every layer alone and together."""
    return [
        made_up_cell("separate", "weights", 0.9, "F16", "f16")
        | {"label": f"separate 0.9 {targets} only layers {layer}", "targets": targets, "layers": str(layer)}
        | {"damage": True, "kld_mean": loss, "kld_low": loss * 0.8, "kld_high": loss * 1.2, "answer": None}
        for layer in range(layers)
        for targets, times in (("q", 1), ("k", 2), ("v", 5), ("qkv", 9))
        for loss in [times * (0.001 + 0.02 * math.exp(-layer))]
    ]
