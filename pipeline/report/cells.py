"""What the parts of the report ask of a study's cells, each a dictionary as `pipeline.compare.results` gives it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.report.numbers import mebibytes, megabytes, millions, percent

Results = dict[str, Any]
Cell = dict[str, Any]

SETTINGS = ("threshold", "budget", "rank", "cache")
METHODS = (
    "none",
    "shared-kv",
    "separate",
    "shared-gate-up",
    "shared-experts",
    "shared-experts-by-use",
    "cross-layer",
    "latent",
    "transmla",
    "random",
)
SAME_SIZE = 1.001  # files differ by what their metadata say


@dataclass(frozen=True)
class Size:
    """A size that the loss is held against: `front` is its name in a cell's `pareto`, `key` the cell's field."""

    front: str
    key: str
    label: str
    text: Callable[[float | None], str]
    per_unit: float
    unit: str


FILE = Size("file", "file_bytes", "file on disk", megabytes, 1e6, "MB")
FACTORED = Size("factored", "factored_bytes", "file if factors were stored", megabytes, 1e6, "MB")
STORED = Size("stored", "factors", "numbers stored", millions, 1e6, "million")
CACHE = Size("kv", "kv_cache_bytes", "KV cache", mebibytes, 2**20, "MiB")
SIZES = (FILE, FACTORED, STORED, CACHE)


def compared(results: Results) -> Results:
    """The results without the cells of `surgery inspect --damage`, each of which changes one layer alone."""
    return {**results, "cells": [cell for cell in results["cells"] if not cell["damage"]]}


def source_cell(results: Results) -> Cell | None:
    """The source as a cell that loses nothing; None while its size is not known."""
    base = results["base"]
    if base["file_bytes"] is None:
        return None
    nothing_lost = {"kld_mean": 0.0, "kld_low": 0.0, "kld_high": 0.0, "same_top": 1.0}
    itself = {
        "label": "source",
        "method": "none",
        "quant": "source",
        "cache_type": "f16",
        "status": "done",
        "texts": [],
    }
    return {**base, **nothing_lost, **itself, "factored_bytes": base["file_bytes"]}


def is_measured(cell: Cell) -> bool:
    """Whether the loss is final: neither running nor unknown. A cell that was stopped early has one, too."""
    return cell["status"] in ("done", "stopped") and cell["kld_mean"] is not None


def is_source(cell: Cell) -> bool:
    """Whether the cell is the source itself, neither operated on nor quantised."""
    return cell["method"] == "none" and cell["quant"] == "source" and cell["cache_type"] == "f16"


def is_operated(cell: Cell) -> bool:
    return bool(cell["method"] != "none")


def quantisation(cell: Cell) -> str:
    return "not quantised" if cell["quant"] == "source" else str(cell["quant"])


def share_stored(cell: Cell) -> float | None:
    """Numbers stored if the factors were kept, as a share of the dense matrices'. None for what is not operated on."""
    if not is_operated(cell) or not cell["factors"] or not cell["dense"]:
        return None
    return float(cell["factors"] / cell["dense"])


def share_stored_text(cell: Cell) -> str:
    return percent(share_stored(cell))


def setting(cell: Cell) -> str:
    """What decides the cell's ranks, such as `threshold 0.9`; empty when nothing does."""
    return next((f"{key} {cell[key]:g}" for key in SETTINGS if cell[key] is not None), "")


def name(cell: Cell) -> str:
    """What the cell is called in the report: what is not operated on goes by what was done to it instead."""
    if is_operated(cell):
        return str(cell["label"])
    quant = "the source" if cell["quant"] == "source" else f"{cell['quant']} alone"
    return quant + (f", cache {cell['cache_type']}" if cell["cache_type"] != "f16" else "")


def worst_text(cell: Cell) -> Cell:
    """The scores on the text that loses most; the cell's own where it is measured on a single one."""
    return max(cell["texts"], key=lambda text: float(text["kld_mean"])) if len(cell["texts"]) > 1 else cell


def upper_loss(cell: Cell) -> float:
    """The upper end of the 95 % interval of the KL divergence on the worst text, in nats; its mean if there is none."""
    texts = cell["texts"] if len(cell["texts"]) > 1 else [cell]
    return max(float(text["kld_high"] if text["kld_high"] is not None else text["kld_mean"]) for text in texts)


def smallest(cells: Iterable[Cell], size: Size, limit: float) -> Cell | None:
    """The smallest of the cells that surely lose less than `limit`; among equally small ones, that which loses least."""
    within = [c for c in cells if is_measured(c) and c[size.key] is not None and upper_loss(c) < limit]
    if not within:
        return None
    least = min(c[size.key] for c in within)
    return min((c for c in within if c[size.key] <= least * SAME_SIZE), key=lambda c: float(c["kld_mean"]))


def different(cells: Iterable[Cell], key: str) -> list[Any]:
    """The values of a field that occur, in order of appearance, without None."""
    return list(dict.fromkeys(cell[key] for cell in cells if cell[key] is not None))
