"""Which layers and which projections cannot take it: each operated on alone, and measured like any cell of a study."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.compare.cell import Cell
from pipeline.compare.ledger import Ledger
from pipeline.compare.study import Study
from pipeline.evaluation.statistics import interval
from pipeline.json_text import plain
from pipeline.operation.plan import Plan

TARGETS = ("q", "k", "v", "qkv")
FACT = "damage"


def damage_plans(layers: Iterable[int], threshold: float, metric: str) -> list[Plan]:
    """A plan for q, k and v of each layer alone and for the three together, each by a PCA of its own."""
    return [
        Plan(method="separate", targets=targets, threshold=threshold, metric=metric, layers=str(layer))
        for layer in layers
        for targets in TARGETS
    ]


def damage_cells(layers: Iterable[int], threshold: float, metric: str) -> list[Cell]:
    """The cells of `damage_plans`."""
    return [Cell(plan) for plan in damage_plans(layers, threshold, metric)]


def note_damage(ledger: Ledger, layers: Iterable[int], threshold: float, metric: str) -> None:
    """Write down that a study's cells of `damage_cells` are for this, and not to be compared with others."""
    choices = {"layers": list(layers), "threshold": threshold, "metric": metric}
    known = ledger.facts().get(FACT, [])
    if choices not in known:
        ledger.set_facts({FACT: [*known, choices]})


def noted_damage(facts: dict[str, Any]) -> set[Cell]:
    """All cells that `note_damage` was told of, from a ledger's facts."""
    return {cell for choices in facts.get(FACT, []) for cell in damage_cells(**choices)}


def measured_damage(study: Study, layers: Iterable[int], threshold: float, metric: str) -> list[dict[str, Any]]:
    """For each layer, by targets, the KL divergence in nats a token, its 95 % interval and the ranks; None if missing.

    Over the texts of the study's settings, which count alike.
    """
    rows: dict[int, dict[str, Any]] = {layer: {"layer": layer} for layer in layers}
    for plan in damage_plans(rows, threshold, metric):
        cell = Cell(plan)
        divergences = [np.array(study.divergences(cell, text)) for text in study.settings.texts]
        operation = study.ledger.operation(study.key(cell))
        found = None
        if all(map(len, divergences)) and operation:
            mean, low, high = interval(*divergences)
            ranks = {group["group"]: group["rank"] for group in operation["layers"]}
            found = plain({"kld_mean": mean, "low": low, "high": high, "ranks": ranks})
        rows[int(plan.layers)][plan.targets] = found
    return list(rows.values())
