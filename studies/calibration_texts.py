"""What holds anywhere, and what only at home? The same surgery calibrated on several texts, measured on several others.

    python -m studies.calibration_texts --home valid.txt --evaluate test.txt --evaluate python-docs --evaluate plays.txt

Calibrates on what the model writes (`self`), on the text `--home`, and on both; measures studies/calibration_texts.yaml
on every text at contexts of 512 and 2048, and writes docs/calibration-texts.json and the tables in docs/findings.md.
"""

from pathlib import Path
from typing import Any

import click

from pipeline.compare.found import StudyResult
from pipeline.json_text import as_json
from studies.documents import document, markdown, write_json
from studies.measured import Study, loss, measured_plan, study_options

CHUNK = 512  # tokens, of which --chunks counts


@click.command(cls=Study)
@study_options
@click.option("--home", required=True, help="The text to calibrate on besides what the model writes.")
@click.option("--ctx", "contexts", multiple=True, default=(512, 2048), show_default=True, help="Tokens of a chunk.")
def main(
    home: str, docs: Path, studies: Path, chunks: int, calibration: str, contexts: tuple[int, ...], **options: Any
) -> None:
    """Measure what each calibration loses on each text, and print a table for each context."""
    results = {
        n_ctx: {
            name: measured_plan(
                "calibration-texts", studies / f"calibration-texts-{n_ctx}-{number}",
                calibration=name, chunks=max(2, chunks * CHUNK // n_ctx), n_ctx=n_ctx, **options,
            )
            for number, name in enumerate((calibration, home, f"{calibration},{home}"))
        }
        for n_ctx in contexts
    }  # fmt: skip
    found = {n_ctx: {name: as_json(study) for name, study in of.items()} for n_ctx, of in results.items()}
    write_json(docs / "calibration-texts.json", found)
    tables = (f"Chunks of {n_ctx} tokens:\n\n{table(of)}" for n_ctx, of in results.items())
    document(docs / "findings.md", "calibration-texts", "\n\n".join(tables))


def table(studies: dict[str, StudyResult]) -> str:
    """A row a method and calibration, a column a text: KL divergence with half of its 95 % interval over chunks."""
    texts = [text.text for text in next(iter(studies.values())).cells[0].texts]
    rows = [
        [cell.method, name, *map(loss, cell.texts)]
        for number, _ in enumerate(next(iter(studies.values())).cells)
        for name, study in studies.items()
        for cell in [study.cells[number]]
    ]
    return markdown(["", "calibrated on", *texts], rows)


if __name__ == "__main__":
    main()
