"""What the models of a study can still do, as tables: every metric of every task, each cell held against the source."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.report.cells import Cell, Results, name
from pipeline.report.numbers import NOTHING, low_to_high, significant

Found = dict[str, Any]
"""A `TaskResult` as JSON has it."""
PLAIN = ("task", "metric", "items", "higher_is_better")
ESTIMATE = ("mean", "low", "high")
PAIRED = ("gained", "lost", "p")


@dataclass(frozen=True)
class TaskTable:
    """A metric of a task, of so many items; a row a model: its name, and what the headings say."""

    task: str
    metric: str
    items: int
    rows: list[tuple[str, ...]]

    HEADINGS = ("value", "95% interval", "difference", "95% interval", "gained", "lost", "p")


def task_tables(results: Results) -> list[TaskTable]:
    return [
        TaskTable(
            source["task"],
            source["metric"],
            source["items"],
            [
                ("the source", *_shown(source)),
                *((name(c), *_shown(t)) for c in results["cells"] if (t := _of(c, source))),
            ],
        )
        for source in results["base"]["tasks"]
    ]


def _of(cell: Cell, source: Found) -> Found | None:
    """What a cell made of the metric that `source` is of."""
    mine = (t for t in cell["tasks"] if (t["task"], t["metric"]) == (source["task"], source["metric"]))
    return next(mine, None)


def _shown(found: Found) -> tuple[str, ...]:
    value = found["value"]
    shown = (f"{value['mean']:.4f}", low_to_high(value["low"], value["high"]))
    if not (paired := found["difference"]):
        return (*shown, *(NOTHING,) * 5)
    difference = paired["difference"]
    counts = (NOTHING if paired[key] is None else f"{paired[key]:,}" for key in ("gained", "lost"))
    signed = f"{difference['mean']:+.4f}"
    return (*shown, signed, low_to_high(difference["low"], difference["high"]), *counts, significant(paired["p"], 2))


def task_readers(results: Results) -> list[tuple[str, Callable[[Cell], float | None]]]:
    """For each metric its name, and what reads a cell's value of it."""

    def reader(source: Found) -> Callable[[Cell], float | None]:
        return lambda cell: found["value"]["mean"] if (found := _of(cell, source)) else None

    return [(f"{source['task']}: {source['metric']}", reader(source)) for source in results["base"]["tasks"]]


def tasks_as_csv(results: Results) -> str:
    """One line a metric and model, the source's first; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    differences = [f"difference_{part}" for part in ESTIMATE]
    writer.writerow(["label", *PLAIN, *ESTIMATE, *(f"base_{part}" for part in ESTIMATE), *differences, *PAIRED])
    for label, model in (("source", results["base"]), *((cell["label"], cell) for cell in results["cells"])):
        for found in model["tasks"]:
            paired = found["difference"] or {}
            estimates = [found["value"], found["base"] or {}, paired.get("difference") or {}]
            numbers = [estimate.get(part) for estimate in estimates for part in ESTIMATE]
            writer.writerow([label, *(found[key] for key in PLAIN), *numbers, *(paired.get(key) for key in PAIRED)])
    return text.getvalue()
