"""What `surgery compare` prints: the cells of a study as a table, or an estimate of what they would take."""

from typing import Any

from pipeline.cli.output import counted, echo, perplexity_text, print_json, print_table
from pipeline.compare.estimate import StudyEstimate
from pipeline.visible import visible


def show_study(results: dict[str, Any], as_json: bool) -> None:
    """The cells as a table, least KL divergence first, or everything as JSON."""
    if as_json:
        print_json(results)
        return
    study, base = results["study"], results["base"]
    echo(f"{study['model']} on {study['text']}, chunks of {study['n_ctx']} tokens", nl=False)
    echo(f"; its own perplexity {base['ppl']:.4f} +/- {base['ppl_se']:.4f}\n" if base["ppl"] else "\n")
    cells = sorted(results["cells"], key=lambda cell: (cell["kld_mean"] is None, cell["kld_mean"]))
    headings = (
        "cell",
        "KL divergence",
        "95 % interval",
        "perplexity",
        "same top",
        "MB",
        "MB factored",
        "with quantising",
        "chunks",
        "status",
    )
    print_table(headings, [table_row(cell) for cell in cells])
    for cell in cells:
        if cell["reason"] and cell["status"] == "failed":
            echo(visible(f"failed: {cell['label']}: {cell['reason']}"))
    echo("\n* no other file of at most its size, as it is or if the factors were stored, loses less")


def table_row(cell: dict[str, Any]) -> tuple[str, ...]:
    def text(pattern: str, *names: str) -> str:
        return pattern.format(*(cell[name] for name in names)) if None not in [cell[name] for name in names] else ""

    interaction = cell["interaction"]
    return (
        cell["label"] + (" *" if "file" in cell["pareto"] or "factored" in cell["pareto"] else ""),
        text("{:.4f} +/- {:.4f}", "kld_mean", "kld_se"),
        text("{:.4f} to {:.4f}", "kld_low", "kld_high"),
        perplexity_text(cell["ppl"], cell["ppl_se"]).split(" +/-")[0] if cell["ppl"] else "",
        text("{:.1%}", "same_top"),
        f"{cell['file_bytes'] / 1e6:,.1f}" if cell["file_bytes"] else "",
        f"{cell['factored_bytes'] / 1e6:,.1f}" if cell["factored_bytes"] else "",
        f"{interaction['verdict']} ({interaction['ratio']:.2f})" if interaction else "",
        str(cell["chunks"]),
        cell["status"] + (f": {cell['reason']}" if cell["reason"] and cell["status"] != "failed" else ""),
    )


def show_estimate(estimate: StudyEstimate, count: int, as_json: bool) -> None:
    if as_json:
        cells = [{"label": cell.label, "file_bytes": size} for cell, size in estimate.file_bytes.items()]
        print_json({"cells": cells, "seconds": estimate.seconds, "work_bytes": estimate.work_bytes})
        return
    print_table(("cell", "MB"), [(cell.label, f"{size / 1e6:,.1f}") for cell, size in estimate.file_bytes.items()])
    echo(
        f"\n{counted(count, 'cell')}, about {estimate.seconds / 60:,.0f} minutes on this machine (calibrating not counted),"
        f" {estimate.work_bytes / 1e9:,.1f} GB on disk meanwhile"
    )
