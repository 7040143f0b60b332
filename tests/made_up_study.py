"""Results of a study as `pipeline.compare.results` gives them, made up: no model is run."""

import itertools
import math
from typing import Any

import numpy as np

LAYERS = 30
QUANTS = {"F16": (0.00002, 269.1e6, 16.0), "Q8_0": (0.0014, 144.8e6, 8.5), "Q4_K_M": (0.0493, 105.4e6, 4.8)}
CACHES = {"f16": (0.0, 11.25), "q8_0": (0.0007, 5.98)}
LOSS = {("shared-kv", "attention"): 0.08, ("separate", "attention"): 0.11, ("separate", "weights"): 1.9}
SCRIPT = "<script>alert(1)</script>"
BASE_ANSWER = ["Machine", " learning", " is", " a", " subset", " of", " artificial", " intelligence", "."]
OTHER_ANSWER = ["Machine", " learning", " is", " a", " way", " of", " writing", f" {SCRIPT}", " & more", "."]


ONE_LINE: dict[str, Any] = {"methods": (("shared-kv", "attention"),), "thresholds": (0.9, 0.5), "quants": ("Q8_0",)}


def find(results: dict[str, Any], label: str) -> dict[str, Any]:
    cell: dict[str, Any] = next(cell for cell in results["cells"] if cell["label"] == label)
    return cell


def made_up_study(
    *,
    methods: tuple[tuple[str, str], ...] = tuple(LOSS),
    thresholds: tuple[float, ...] = (0.99, 0.9, 0.7, 0.5),
    quants: tuple[str, ...] = tuple(QUANTS),
    caches: tuple[str, ...] = ("f16",),
    axis: str = "threshold",
) -> dict[str, Any]:
    """Every combination of the given ones, and each quantisation alone. `axis` is what `thresholds` are."""
    plain = [made_up_cell("none", None, None, quant, cache) for quant, cache in itertools.product(quants, caches)]
    operated = [
        made_up_cell(method, metric, threshold, quant, cache, axis)
        for (method, metric), threshold, quant, cache in itertools.product(methods, thresholds, quants, caches)
    ]
    cells = plain + operated
    for cell in cells:
        mark_fronts(cell, cells)
    return {"schema": 2, "study": dict(STUDY), "base": dict(BASE), "cells": cells, "subspaces": {}}


def speed(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.97, "high": median * 1.02}


def made_up_cell(
    method: str, metric: str | None, setting: float | None, quant: str, cache: str, axis: str = "threshold"
) -> dict[str, Any]:
    quant_loss, quant_bytes, bits = QUANTS[quant]
    cache_loss, mebibytes = CACHES[cache]
    surgery = LOSS[method, str(metric)] * 6 * (1.02 - setting) ** 1.5 if setting is not None else 0.0
    kld = surgery + quant_loss * (1 + surgery / 4) + cache_loss
    share = 0.25 + 0.85 * setting if setting is not None else 1.0
    se = kld * 0.017
    operation = " ".join(str(part) for part in (method, setting, metric) if part is not None)
    dense = 16_588_800
    operated = setting is not None
    cell: dict[str, Any] = dict.fromkeys(UNKNOWN) | {
        "label": f"{operation}, {quant}" + (f", cache {cache}" if cache != "f16" else ""),
        "status": "done",
        "method": method,
        "targets": "qkv" if operated else None,
        axis: setting,
        "metric": metric,
        "mean": "keep" if operated else None,
        "layers": "all" if operated else None,
        "group_layers": None,
        "outtype": "auto" if operated else None,
        "damage": False,
        "seed": 0 if operated else None,
        "quant": quant,
        "cache_type": cache,
        "commands": [f"surgery quantize smollm2.gguf cell.gguf {quant}", "surgery run cell.gguf"],
        "chunks": 20,
        "nll": math.log(23.9) + kld,
        "ppl": 23.9 * math.exp(kld),
        "ppl_se": 0.6 * math.exp(kld),
        "ppl_low": 22.6 * math.exp(kld),
        "ppl_high": 25.2 * math.exp(kld),
        "ppl_se_tokens": 0.2 * math.exp(kld),
        "kld_mean": kld,
        "kld_se": se,
        "kld_se_tokens": se / 3,
        "kld_low": kld - 2.09 * se,
        "kld_high": kld + 2.09 * se,
        "kld_median": kld * 0.6,
        "kld_p99": kld * 9,
        "same_top": math.exp(-1.4 * math.sqrt(kld)),
        "file_bytes": int(quant_bytes + 2048 * operated),
        "factored_bytes": int(quant_bytes - dense * (1 - share) * bits / 8),
        "factors": int(dense * share) if operated else None,
        "dense": dense if operated else None,
        "kv_cache_bytes": int(mebibytes * 2**20),
        "prompt_speed": speed(900.0),
        "generation_speed": speed(95.0),
        "ranks": made_up_ranks(share) if operated else None,
        "answer": OTHER_ANSWER if operated else BASE_ANSWER,
        "first_difference": 4 if operated else None,
        "seconds": 31.5,
        "machine": "Laptop",
        "threads": 2,
        "made_with": MADE_WITH,
    }
    if operated:
        cell["over_quant"] = {"mean": surgery, "low": surgery * 0.96, "high": surgery * 1.04}
        cell["interaction"] = {"ratio": 1.04, "low": 0.99, "high": 1.09, "verdict": "adds up"}
    cell["texts"] = [made_up_text(cell, "wikitext-2 test", 1.0)]
    cell["worst"] = "wikitext-2 test"
    cell |= {"tasks": [], "passkeys": []}
    return cell


def made_up_text(cell: dict[str, Any], name: str, times: float) -> dict[str, Any]:
    """The scores on a text that loses so many times what the cell does."""
    scores = {key: value for key, value in cell.items() if key.startswith(("nll", "ppl", "base_ppl", "kld", "same"))}
    scores |= {key: times * scores[key] for key in ("kld_mean", "kld_low", "kld_high")}
    return scores | {"text": name, "text_sha256": "a1" * 32, "chunks": 20, "kld_chunks": [scores["kld_mean"]] * 20}


def made_up_ranks(share: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "layer": layer,
            "layers": [layer],
            "group": group,
            "rank": int(full * min(1, share * rng.uniform(0.3, 0.9) * (0.5 + layer / LAYERS))),
            "full_rank": full,
            "explained": share,
        }
        for layer in range(LAYERS)
        for group, full in (("q", 576), ("kv", 384))
    ]


def mark_fronts(cell: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    sizes = {"file": "file_bytes", "factored": "factored_bytes", "stored": "factors", "kv": "kv_cache_bytes"}
    cell["pareto"] = [
        name
        for name, key in sizes.items()
        if cell[key] is not None
        and not any(
            (other[key] <= cell[key] and other["kld_mean"] < cell["kld_mean"])
            or (other[key] < cell[key] and other["kld_mean"] <= cell["kld_mean"])
            for other in cells
            if other[key] is not None
        )
    ]


def unknown(cell: dict[str, Any], status: str, reason: str | None = None) -> None:
    """Make `cell` one that was not measured."""
    cell.update(dict.fromkeys(MEASURED), pareto=[], texts=[], status=status, reason=reason)


PERPLEXITY = ("ppl", "ppl_se", "ppl_low", "ppl_high", "ppl_se_tokens")
MEASURED = (
    *("chunks", "worst", "nll", *PERPLEXITY, *(f"base_{name}" for name in PERPLEXITY)),
    *("kld_mean", "kld_se", "kld_low", "kld_high", "kld_se_tokens", "kld_median", "kld_p99", "same_top"),
    *("file_bytes", "factored_bytes", "factors", "dense", "kv_cache_bytes", "prompt_speed", "generation_speed"),
    *("over_quant", "interaction", "ranks", "answer", "first_difference", "seconds", "machine", "threads"),
    *("made_with", "answer_failure"),
)
UNKNOWN = ["reason", "threshold", "rank", "budget", "cache", *MEASURED]

MADE_WITH: dict[str, Any] = {
    "surgery": "0.2.0",
    "revisions": {"scores": "0123456789ab"},
    "llama_cpp": "0.3.36",
    "instruction_set": "AVX AVX2 FMA",
    "numpy": "2.2.0",
    "blas": "openblas 0.3.31 Haswell",
    "machine": "Laptop, 2 cores",
    "threads": 2,
}
STUDY: dict[str, Any] = {
    "model": "smollm2.gguf",
    "model_sha256": "5f" * 32,
    "architecture": "llama",
    "text": "wikitext-2 test",
    "texts": [{"name": "wikitext-2 test", "sha256": "a1" * 32, "chunks": 20}],
    "n_ctx": 512,
    "chunks": 20,
    "calibration": {"text": "wikitext-2 valid", "text_sha256": "b2" * 32, "chunks": 64},
    "prompt": "What is machine learning?",
    "command": "surgery compare smollm2.gguf --methods shared-kv,separate --thresholds 0.99,0.9,0.7,0.5"
    " --metrics weights,attention --quants F16,Q8_0,Q4_K_M --text test.txt -o study",
    "created": "2026-11-21T22:10:00+00:00",
    "made_with": MADE_WITH,
    "machine": "Laptop, 2 cores",
    "threads": 2,
    "seconds": 1268.4,
}
BASE: dict[str, Any] = dict.fromkeys(MEASURED) | {
    "nll": math.log(23.9),
    "ppl": 23.9,
    "ppl_se": 0.6,
    "ppl_low": 22.6,
    "ppl_high": 25.2,
    "ppl_se_tokens": 0.2,
    "file_bytes": 270_900_000,
    "factored_bytes": 270_900_000,
    "kv_cache_bytes": int(11.25 * 2**20),
    "prompt_speed": speed(880.0),
    "generation_speed": speed(90.0),
    "answer": BASE_ANSWER,
    "seconds": 31.5,
    "machine": "Laptop, 2 cores",
    "threads": 2,
    "made_with": MADE_WITH,
    "texts": [],
    "tasks": [],
    "passkeys": [],
}
for only_of_cells in ("chunks", "worst", "over_quant", "interaction", "ranks"):
    del BASE[only_of_cells]
