"""What `surgery compare` prints: the cells of a study as a table, or an estimate of what they would take."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from pipeline.cli.output import counted, duration, echo, perplexity_text, print_json, print_table
from pipeline.cli.task_tables import print_study_tasks
from pipeline.cli.wording import spoken
from pipeline.compare.estimate import StudyEstimate
from pipeline.compare.found import CellResult, StudyResult
from pipeline.json_text import as_json as as_json_object
from pipeline.visible import visible

LESS_TELLING = ("with quantising", "chunks", "perplexity", "same top", "MB factored", "status")
"""The columns that a narrow terminal does without, the first one first."""
FEW_CHUNKS = 8  # of a text: fewer say little about the interval itself


def show_study(results: StudyResult, as_json: bool) -> None:
    """The cells as a table, least KL divergence first, or everything as JSON."""
    if as_json:
        print_json(as_json_object(results))
        return
    study, base = results.study, results.base
    echo(f"{study['model']} on {study['text']}, chunks of {study['n_ctx']} tokens", nl=False)
    echo(
        "\n"
        if isnan(base.ppl)
        else f"; its own perplexity {perplexity_text(base.ppl)}{_between(base.ppl_low, base.ppl_high)}\n"
    )
    cells = sorted(results.cells, key=lambda cell: (isnan(cell.kld_mean), cell.kld_mean))
    texts = [text["name"] for text in study["texts"]] if len(study["texts"]) > 1 else []
    headings = (
        "cell",
        "mean KL" if texts else "KL divergence",
        "95 % interval",
        *(f"on {Path(text).name}" for text in texts),
        "perplexity",
        "same top",
        "MB",
        "MB factored",
        "with quantising",
        "chunks",
        "status",
    )
    dispensable = [headings.index(name) for name in (*LESS_TELLING, *headings[3 : 3 + len(texts)])]
    print_table(headings, [table_row(cell, texts) for cell in cells], dispensable=dispensable)
    print_study_tasks(results)
    failures: defaultdict[str, list[str]] = defaultdict(list)
    for cell in cells:
        if cell.reason and cell.status == "failed":
            failures[cell.reason].append(cell.label)
    for reason, labels in failures.items():
        echo(visible(f"failed: {'; '.join(labels)}: {spoken(reason)}"))
    for reason, count in Counter(cell.answer_failure for cell in cells if cell.answer_failure).items():
        echo(visible(f"no answer from {count} of {counted(len(cells), 'cell')}: {spoken(reason)}"))
    echo("\n* no other file of at most its size, as it is or if the factors were stored, loses less")
    echo("KL divergence from the source in nats a token; intervals over chunks" + ", texts count alike" * bool(texts))
    fewest = min((text["chunks"] for text in study["texts"]), default=0)
    if 0 < fewest < FEW_CHUNKS:
        echo(f"preliminary: only {counted(fewest, 'chunk')} of a text; --chunks takes more, and adds to these")


def _between(low: float, high: float) -> str:
    return "" if isnan(low) else f" (95 % interval {perplexity_text(low)} to {perplexity_text(high)})"


def table_row(cell: CellResult, texts: Sequence[str]) -> tuple[str, ...]:
    """A cell as a row; `texts`, if there are several, have a column each, with the worst one marked."""

    def text(pattern: str, *values: float) -> str:
        return "" if any(map(isnan, values)) else pattern.format(*values)

    on = {one.text: f"{one.kld_mean:.4f}" + ("!" if one.text == cell.worst else "") for one in cell.texts}
    return (
        cell.label + (" *" if {"file", "factored"} & set(cell.pareto) else ""),
        text("{:.4f}", cell.kld_mean),
        text("{:.4f} to {:.4f}", cell.kld_low, cell.kld_high),
        *(on.get(name, "") for name in texts),
        "" if isnan(cell.kld_mean) else perplexity_text(cell.ppl),
        text("{:.1%}", cell.same_top),
        f"{cell.file_bytes / 1e6:,.1f}" if cell.file_bytes else "",
        f"{cell.factored_bytes / 1e6:,.1f}" if cell.factored_bytes else "",
        f"{cell.interaction.verdict} ({cell.interaction.ratio:.2f})" if cell.interaction else "",
        str(cell.chunks),
        cell.status + (f": {cell.reason}" if cell.reason and cell.status != "failed" else ""),
    )


def show_estimate(estimate: StudyEstimate, count: int, as_json: bool) -> None:
    if as_json:
        cells = [{"label": cell.label, "file_bytes": size} for cell, size in estimate.file_bytes.items()]
        print_json({"cells": cells, "seconds": estimate.seconds, "work_bytes": estimate.work_bytes})
        return
    print_table(("cell", "MB"), [(cell.label, f"{size / 1e6:,.1f}") for cell, size in estimate.file_bytes.items()])
    echo(
        f"\n{counted(count, 'cell')}, about {duration(estimate.seconds)} on this machine (calibrating not counted),"
        f" {estimate.work_bytes / 1e9:,.1f} GB on disk meanwhile"
    )
    if any(getattr(cell.plan, "budget", None) for cell in estimate.file_bytes):
        echo("a budget's file may be smaller: what it leaves whole keeps its type")
