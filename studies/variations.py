"""What are the metric, the mean and the spread of ranks worth, and what does q alone lose? A table.

    python -m studies.variations --calibrate valid.txt --evaluate test.txt

Measures studies/variations.yaml and writes docs/variations.json and the table in docs/findings.md.
"""

from pathlib import Path
from typing import Any

import click

from pipeline.compare.found import StudyResult
from studies.documents import document, markdown
from studies.measured import Study, loss, measured, study_options


@click.command(cls=Study)
@study_options
def main(docs: Path, **options: Any) -> None:
    """Measure what choices beside method and budget are worth."""
    results = measured("variations", docs=docs, **options)
    document(docs / "findings.md", "variations", table(results))


def table(results: StudyResult) -> str:
    """The cells with half of their 95 % intervals over chunks."""
    rows = [
        [
            str(cell.targets),
            cell.method,
            str(cell.metric),
            str(cell.mean),
            f"budget {cell.budget}" if cell.rank is None else f"rank {cell.rank} in every layer",
            loss(cell),
            f"{cell.ppl:.2f}",
        ]
        for cell in results.cells
    ]
    headings = ["targets", "method", "metric", "mean", "ranks", "KL divergence", "perplexity"]
    return markdown(headings, rows)


if __name__ == "__main__":
    main()
