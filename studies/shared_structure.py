"""Do k and v share structure? KL divergence at equal stored numbers, with a picture.

    python -m studies.shared_structure --calibrate valid.txt --evaluate test.txt

Measures studies/shared_structure.yaml and writes docs/shared-structure.json, docs/shared-structure.svg and the table in
docs/findings.md.
"""

from pathlib import Path
from typing import Any

import click

from pipeline.compare.found import CellResult, StudyResult
from studies.documents import document, markdown
from studies.measured import Study, bars, cell_of, loss, measured, study_options
from studies.pictures import divergence_axis, drawn

BUDGETS = (0.4167, 0.5556, 0.7639, 0.9462)
LINES = {
    "random subspace": ("random", "weights", "tab:gray"),
    "plain PCA, k and v apart": ("separate", "weights", "tab:orange"),
    "plain PCA, k+v shared": ("shared-kv", "weights", "tab:red"),
    "calibrated PCA, k and v apart": ("separate", "attention", "tab:cyan"),
    "calibrated PCA, k+v shared": ("shared-kv", "attention", "tab:blue"),
}


@click.command(cls=Study)
@study_options
def main(docs: Path, **options: Any) -> None:
    """Measure what each method loses at equal stored numbers, and draw it."""
    results = measured("shared-structure", docs=docs, **options)
    document(docs / "findings.md", "shared-structure", table(results))
    draw(results, docs / "shared-structure.svg")


def line(results: StudyResult, name: str) -> list[CellResult]:
    method, metric, _ = LINES[name]
    return [cell_of(results, method=method, metric=metric, budget=budget) for budget in BUDGETS]


def table(results: StudyResult) -> str:
    """KL divergence with half of its 95 % interval over chunks; at the end the perplexity of the last of LINES."""
    rows = [[name, *map(loss, line(results, name))] for name in LINES]
    *_, last = LINES
    rows.append([f"perplexity, {last}", *(f"{cell.ppl:.2f}" for cell in line(results, last))])
    return markdown([f"budget (perplexity of the source: {results.base.ppl:.2f})", *map(str, BUDGETS)], rows)


def draw(results: StudyResult, path: Path) -> None:
    """KL divergence over stored numbers, a line a method, with 95 % intervals."""
    with drawn(path) as axes:
        for name, (_, _, colour) in LINES.items():
            means, reach = bars(line(results, name))
            shares = [100 * budget for budget in BUDGETS]
            axes.errorbar(shares, means, reach, color=colour, marker="o", markersize=4, label=name)
        divergence_axis(axes)
        axes.set_xlabel("numbers stored for k and v, % of the source's")


if __name__ == "__main__":
    main()
