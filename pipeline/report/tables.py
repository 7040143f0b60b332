"""A study's cells as a table for people (`COLUMNS`, Markdown) and for programs (CSV, all numbers as measured)."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.report.cells import SIZES, Cell, Results, name, share_stored, share_stored_text
from pipeline.report.numbers import (
    NOTHING,
    low_to_high,
    mebibytes,
    megabytes,
    percent,
    perplexity,
    significant,
)
from pipeline.report.task_tables import task_readers

FRONTS = {size.front: size.label for size in SIZES}


@dataclass(frozen=True)
class Column:
    """`text` is what is shown; `order` is what rows are sorted by, None for what is not known."""

    heading: str
    unit: str
    text: Callable[[Cell], str]
    order: Callable[[Cell], float | str | None]

    @property
    def numeric(self) -> bool:
        return self.heading not in ("combination", "best for", "status")


def _field(heading: str, unit: str, key: str, text: Callable[[float | None], str]) -> Column:
    return Column(heading, unit, lambda cell: text(cell[key]), lambda cell: cell[key])


def _nested(heading: str, unit: str, key: str, part: str, text: Callable[[dict[str, Any]], str]) -> Column:
    return Column(
        heading,
        unit,
        lambda cell: text(cell[key]) if cell[key] else NOTHING,
        lambda cell: cell[key][part] if cell[key] else None,
    )


def fronts(cell: Cell) -> str:
    return ", ".join(FRONTS[front] for front in cell["pareto"] or () if front in FRONTS)


def status(cell: Cell) -> str:
    return str(cell["status"]) + (f": {cell['reason']}" if cell["reason"] else "")


def _speed(speed: dict[str, Any]) -> str:
    if speed["low"] == speed["high"]:  # of one value, or as good as one: there is no spread
        return f"{speed['median']:,.0f}"
    return f"{speed['median']:,.0f} ({speed['low']:,.0f} to {speed['high']:,.0f})"


COLUMNS = (
    Column("combination", "", name, name),
    _field("KL divergence", "nats a token", "kld_mean", significant),
    Column("95% interval", "nats a token", lambda c: low_to_high(c["kld_low"], c["kld_high"]), lambda c: c["kld_low"]),
    Column("perplexity", "", perplexity, lambda c: c["ppl"]),
    _field("same top token", "", "same_top", percent),
    _field("file on disk", "MB", "file_bytes", lambda b: megabytes(b).removesuffix(" MB")),
    _field("if factors were stored", "MB", "factored_bytes", lambda b: megabytes(b).removesuffix(" MB")),
    Column("numbers stored", "of all", share_stored_text, share_stored),
    _field("KV cache", "MiB", "kv_cache_bytes", lambda b: mebibytes(b).removesuffix(" MiB")),
    _nested("prompt", "tokens/s", "prompt_speed", "median", _speed),
    _nested("generation", "tokens/s", "generation_speed", "median", _speed),
    _nested(
        "beyond quantisation",
        "nats a token",
        "over_quant",
        "mean",
        lambda over: f"{significant(over['mean'])} ({low_to_high(over['low'], over['high'])})",
    ),
    _nested(
        "together over sum",
        "ratio",
        "interaction",
        "ratio",
        lambda i: f"{i['ratio']:.2f} ({low_to_high(i['low'], i['high'])}), {i['verdict']}",
    ),
    Column("best for", "its size", fronts, lambda c: fronts(c) or None),
    Column("status", "", status, lambda c: c["status"]),
)


def columns(results: Results) -> list[Column]:
    """COLUMNS, after the mean KL divergence one for each text if there are several, and one for each task's metric."""
    texts = results["study"]["texts"] if len(results["study"]["texts"]) > 1 else []
    place = 1 + next(number for number, column in enumerate(COLUMNS) if column.heading == "95% interval")
    after = 1 + next(number for number, column in enumerate(COLUMNS) if column.heading == "same top token")
    tasks = [_task(heading, read) for heading, read in task_readers(results)]
    return [*COLUMNS[:place], *(_on(text["name"]) for text in texts), *COLUMNS[place:after], *tasks, *COLUMNS[after:]]


def _task(heading: str, read: Callable[[Cell], float | None]) -> Column:
    return Column(heading, "", lambda cell: NOTHING if (value := read(cell)) is None else f"{value:.4f}", read)


def _on(text: str) -> Column:
    """The KL divergence on one text, the worst marked."""

    def loss(cell: Cell) -> float | None:
        return next((one["kld_mean"] for one in cell["texts"] if one["text"] == text), None)

    def shown(cell: Cell) -> str:
        return significant(loss(cell)) + (" (worst)" if cell["worst"] == text else "")

    return Column(f"on {PurePath(text).name}", "nats a token", shown, loss)


PLAIN = (
    *("label", "status", "reason", "method", "targets", "threshold", "rank", "budget", "cache", "metric", "mean"),
    *("quant", "cache_type", "chunks", "worst", "ppl", "ppl_se", "ppl_low", "ppl_high", "ppl_se_tokens"),
    *("kld_mean", "kld_se", "kld_low", "kld_high", "kld_se_tokens", "kld_median", "kld_p99", "same_top"),
    *("file_bytes", "factored_bytes", "factors", "dense", "kv_cache_bytes"),
)
NESTED = {
    "prompt_speed": ("median", "low", "high"),
    "generation_speed": ("median", "low", "high"),
    "over_quant": ("mean", "low", "high"),
    "interaction": ("ratio", "low", "high", "verdict"),
}
LAST = ("first_difference", "seconds", "machine", "threads")


def as_csv(results: Results) -> str:
    """One line a cell, everything but its ranks and answer; what is not known is empty, `pareto` separated by spaces."""
    text = io.StringIO()
    nested = [f"{key}_{part}" for key, parts in NESTED.items() for part in parts]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*PLAIN, *nested, "pareto", *LAST])
    for cell in results["cells"]:
        parts = [(cell[key] or {}).get(part) for key, parts in NESTED.items() for part in parts]
        writer.writerow([*(cell[k] for k in PLAIN), *parts, " ".join(cell["pareto"] or ()), *(cell[k] for k in LAST)])
    return text.getvalue()


def as_markdown(results: Results) -> str:
    """The table as the page shows it, in the study's order."""
    shown = columns(results)
    headings = [f"{column.heading} ({column.unit})" if column.unit else column.heading for column in shown]
    rows = [
        headings,
        ["---:" if column.numeric else "---" for column in shown],
        *([column.text(cell) for column in shown] for cell in results["cells"]),
    ]
    return "".join(f"| {' | '.join(_in_cell(text) for text in row)} |\n" for row in rows)


def _in_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
