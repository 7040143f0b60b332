"""What a study found: every cell with its statistics, paired by chunk with the cells that it is to be compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from native.scoring import TokenScores
from pipeline import __version__
from pipeline.compare.cell import Cell, StudySubject, base_key
from pipeline.compare.damage import noted_damage
from pipeline.compare.ledger import Ledger, is_being_measured, open_ledger
from pipeline.errors import UsageError
from pipeline.evaluation.statistics import (
    divergence_summary,
    interval,
    interval_bounds,
    jackknife_interval,
    pareto_front,
    perplexity,
    quartiles,
)

WARM_UP_TOKENS = 8
FRONTS = {"file": "file_bytes", "factored": "factored_bytes", "stored": "factors", "kv": "kv_cache_bytes"}
"""What a cell costs, by the name of the front: bytes of its file, bytes if the factors were stored, numbers stored for
the operated matrices, bytes of the KV cache."""
PLAN_CHOICES = ("targets", "threshold", "rank", "budget", "metric", "mean", "layers", "group_layers", "seed")


def study_results(folder: Path) -> dict[str, Any]:
    """A study as one JSON object: the study, its base, its cells, and by metric what was seen of the source's subspaces.

    `damage` marks the cells of `surgery inspect --damage`, which are on no front. Raises as `open_ledger` does.
    """
    with open_ledger(folder) as ledger:
        results = ledger_results(ledger)
    if not is_being_measured(folder):
        for cell in results["cells"]:  # what an interrupted run had begun
            cell["status"] = "pending" if cell["status"] == "running" else cell["status"]
    return results


def ledger_results(ledger: Ledger) -> dict[str, Any]:
    """`study_results` of an open ledger. Raises UsageError for one that is empty."""
    facts = ledger.facts()
    if not facts:
        raise UsageError("the study has only been begun: nothing is measured yet")
    subject = StudySubject(**{name: facts[name] for name in StudySubject.__dataclass_fields__})
    key = base_key(subject)
    base_run, base_chunks = ledger.run(key), ledger.chunks(key)
    base_facts = base_run.facts or {}
    cells = ledger.cells()
    scores = {cell: np.array([s.kld.mean() for s in ledger.chunks(key)]) for cell, key in cells.items()}
    damage = noted_damage(facts)
    rows = [
        {**_cell_result(ledger, cell, key, scores, base_facts, facts["n_ctx"]), "damage": cell in damage}
        for cell, key in cells.items()
    ]
    _mark_fronts([row for row in rows if not row["damage"]])
    ppl, ppl_se = perplexity(np.concatenate([s.nll for s in base_chunks])) if base_chunks else (None, None)
    return {
        "study": {
            **{name: facts.get(name) for name in _STUDY_FACTS},
            "versions": {
                "surgery": __version__,
                **{name: version(name) for name in ("llama-cpp-python", "gguf", "numpy")},
                "python": python_version(),
            },
            "machine": base_facts.get("machine"),
            "threads": base_facts.get("threads"),
        },
        "base": {
            "ppl": ppl,
            "ppl_se": ppl_se,
            "file_bytes": base_facts.get("file_bytes"),
            "kv_cache_bytes": base_facts.get("kv_cache_bytes"),
            "prompt_speed": prompt_speed(ledger.chunk_seconds(key), facts["n_ctx"]),
            "generation_speed": generation_speed(base_facts.get("token_seconds", [])),
            "answer": base_facts.get("answer"),
            "answer_failure": base_facts.get("answer_failure"),
        },
        "cells": rows,
        "subspaces": facts.get("subspaces", {}),
    }


def _mark_fronts(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each cell's `pareto` the fronts that it is on among `rows`."""
    for front, cost in FRONTS.items():
        measured = [row for row in rows if row["kld_mean"] is not None and row[cost] is not None]
        best = pareto_front([row[cost] for row in measured], [row["kld_mean"] for row in measured])
        for index in best:
            measured[index]["pareto"].append(front)


_STUDY_FACTS = (
    "model", "model_sha256", "architecture", "text", "text_sha256", "n_ctx", "chunks", "calibration", "prompt",
    "command", "created", "seconds",
)  # fmt: skip


def _cell_result(
    ledger: Ledger, cell: Cell, key: str, scores: Mapping[Cell, np.ndarray], base: Mapping[str, Any], n_ctx: int
) -> dict[str, Any]:
    run, chunks, seconds = ledger.run(key), ledger.chunks(key), ledger.chunk_seconds(key)
    facts = run.facts or {}
    operation = ledger.operation(facts["operation"]) if facts.get("operation") else None
    alone, unoperated = Cell(cell.plan), replace(cell, plan=None)
    return {
        "label": cell.label,
        "status": run.status,
        "reason": run.reason,
        "method": cell.method,
        **{name: getattr(cell.plan, name, None) for name in PLAN_CHOICES},
        "cache": getattr(cell.plan, "cache", None),
        "quant": cell.quant,
        "cache_type": cell.cache_type,
        **_divergence(chunks),
        **_sizes(facts, operation),
        "prompt_speed": prompt_speed(seconds, n_ctx),
        "generation_speed": generation_speed(facts.get("token_seconds", [])),
        "over_quant": difference(scores[cell], scores.get(unoperated)) if cell.plan else None,
        "interaction": interaction(scores[cell], scores.get(alone), scores.get(unoperated))
        if cell not in (alone, unoperated)
        else None,
        "pareto": [],
        "ranks": [_rank(group) for group in (operation or {}).get("layers", []) if "rank" in group] or None,
        "answer": facts.get("answer"),
        "answer_failure": facts.get("answer_failure"),
        "first_difference": first_difference(base.get("answer"), facts.get("answer")),
        "seconds": sum(seconds) if seconds else None,
        "machine": facts.get("machine"),
        "threads": facts.get("threads"),
    }


def _divergence(chunks: Sequence[TokenScores]) -> dict[str, Any]:
    if not chunks:
        return dict.fromkeys(_DIVERGENCE) | {"chunks": 0}
    nll, kld, same_top = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("nll", "kld", "same_top"))
    low, high = interval_bounds(np.array([c.kld.mean() for c in chunks]))
    ppl, ppl_se = perplexity(nll)
    mean = float(nll.mean())
    summary = divergence_summary(kld, same_top)
    return {
        "chunks": len(chunks),
        "nll": mean,
        "ppl": ppl,
        "ppl_se": ppl_se,
        **summary,
        "kld_low": low,
        "kld_high": high,
    }


_DIVERGENCE = (
    "nll", "ppl", "ppl_se", "kld_mean", "kld_se", "kld_low", "kld_high", "kld_median", "kld_p99", "same_top",
)  # fmt: skip


def _sizes(facts: Mapping[str, Any], operation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Bytes and numbers. Stored as factors, the operated matrices would take as many bytes a number as they do now."""
    sizes: dict[str, Any] = {"file_bytes": facts.get("file_bytes"), "kv_cache_bytes": facts.get("kv_cache_bytes")}
    numbers: dict[str, Any] = (operation or {}).get("stored_numbers") or {"factors": None, "dense": None}
    factored = sizes["file_bytes"]
    if operation and factored is not None and facts.get("operated_numbers"):
        bytes_a_number = facts["operated_bytes"] / facts["operated_numbers"]
        factored = round(factored - (numbers["dense"] - numbers["factors"]) * bytes_a_number)
    return {**sizes, "factored_bytes": factored, "factors": numbers["factors"], "dense": numbers["dense"]}


def _rank(group: Mapping[str, Any]) -> dict[str, Any]:
    full_rank = min(group["rows"], group["columns"])
    return {**{name: group[name] for name in ("layer", "layers", "group", "rank", "explained")}, "full_rank": full_rank}


def difference(ours: np.ndarray, theirs: np.ndarray | None) -> dict[str, float] | None:
    """The mean difference of paired chunks and its 95 % interval; None with fewer than two pairs."""
    n = min(len(ours), 0 if theirs is None else len(theirs))
    if theirs is None or n < 2:
        return None
    return dict(zip(("mean", "low", "high"), interval(ours[:n] - theirs[:n]), strict=True))


def interaction(both: np.ndarray, surgery: np.ndarray | None, quantised: np.ndarray | None) -> dict[str, Any] | None:
    """How the KL divergence of both together compares with the sum of each alone: a ratio and its 95 % interval.

    All (chunks,), paired; None with fewer than two pairs, or when neither alone loses anything.
    """
    if surgery is None or quantised is None:
        return None
    n = min(map(len, (both, surgery, quantised)))
    if n < 2 or (surgery[:n] + quantised[:n]).mean() <= 0:
        return None
    ratio, low, high = jackknife_interval(lambda b, s, q: b / (s + q), both[:n], surgery[:n], quantised[:n])
    verdict = "adds up" if low <= 1 <= high else "more than adds up" if ratio > 1 else "less than adds up"
    return {"ratio": ratio, "low": low, "high": high, "verdict": verdict}


def prompt_speed(chunk_seconds: Sequence[float], n_ctx: int) -> dict[str, float] | None:
    """Tokens a second over whole chunks, median and quartiles; the first chunk warms up, if there is another."""
    return quartiles(n_ctx / np.array(chunk_seconds[1:] or chunk_seconds))


def generation_speed(token_seconds: Sequence[float]) -> dict[str, float] | None:
    """Tokens a second of an answer, median and quartiles, after WARM_UP_TOKENS."""
    return quartiles(1 / np.array(token_seconds[WARM_UP_TOKENS:]))


def first_difference(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> int | None:
    """The index of the first token that two answers do not share; None when they are the same or one is missing."""
    if ours is None or theirs is None or ours == theirs:
        return None
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
