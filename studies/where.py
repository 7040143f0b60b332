"""Where in a transformer is the redundancy? KL divergence for each million stored numbers removed, by role and layers.

    python -m studies.where --calibrate valid.txt --evaluate test.txt

Measures studies/where.yaml and writes docs/where.json, docs/where.svg and the table in docs/findings.md.
"""

from pathlib import Path
from typing import Any

import click

from pipeline.compare.found import CellResult, StudyResult
from pipeline.targets import TARGETS
from studies.documents import document, markdown
from studies.measured import Study, loss, measured, study_options
from studies.pictures import drawn

THIRDS = ("0-9", "10-19", "20-29")


@click.command(cls=Study)
@study_options
def main(docs: Path, **options: Any) -> None:
    """Measure what each projection of each third of the layers loses, and draw it."""
    results = measured("where", docs=docs, **options)
    document(docs / "findings.md", "where", table(results))
    draw(results, docs / "where.svg")


def removed(cell: CellResult) -> float:
    """Stored numbers that the factors save, in millions; 0 where nothing was operated on."""
    return ((cell.dense or 0) - (cell.factors or 0)) / 1e6


def table(results: StudyResult) -> str:
    """The cells with half of their 95 % intervals over chunks, and the file that they would make."""
    rows = [
        [
            cell.targets or cell.quant,
            cell.layers or "",
            cell.method,
            f"{removed(cell):.2f}" if removed(cell) else "",
            loss(cell),
            f"{cell.kld_mean / removed(cell):.4f}" if removed(cell) else "",
            f"{(cell.factored_bytes or cell.file_bytes or 0) / 1e6:.1f}",
        ]
        for cell in results.cells
    ]
    headings = [
        "targets",
        "layers",
        "method",
        "millions removed",
        "KL divergence",
        "for each million",
        "MB if factored",
    ]
    return markdown(headings, rows)


def draw(results: StudyResult, path: Path) -> None:
    """KL divergence for each million of stored numbers removed over the layers, a line a role; dashed the control."""
    with drawn(path) as axes:
        for number, role in enumerate(TARGETS):
            for method, line in (("separate", "-o"), ("random", "--x")):
                found = {cell.layers: cell for cell in results.cells if (cell.targets, cell.method) == (role, method)}
                values = [found[third].kld_mean / removed(found[third]) for third in THIRDS]
                label = role if method == "separate" else None
                axes.plot(THIRDS, values, line, color=f"C{number}", markersize=4, label=label)
        axes.plot([], [], "--x", color="gray", markersize=4, label="random subspaces")
        axes.set_yscale("log")
        axes.set_xlabel("layers operated on")
        axes.set_ylabel("nats a token for each million numbers removed")


if __name__ == "__main__":
    main()
