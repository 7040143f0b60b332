"""What holds anywhere, and what only at home? The same surgery calibrated on several texts, measured on several others.

    python -m studies.calibration_texts --home valid.txt --evaluate test.txt --evaluate python-docs --evaluate plays.txt

Calibrates on what the model writes (`self`), on the text `--home`, and on both; measures studies/calibration_texts.yaml
on every text at contexts of 512 and 2048, and writes docs/calibration-texts.json.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.compare.found import StudyResult
from pipeline.evaluation.statistics import mean_and_standard_error
from pipeline.json_text import as_json, json_text
from studies.measured import measured_plan, study_options

CONTEXTS = (512, 2048)


@click.command()
@study_options
@click.option("--home", required=True, help="The text to calibrate on besides what the model writes.")
def main(home: str, docs: Path, studies: Path, chunks: int, calibration: str, **options: Any) -> None:
    """Measure what each calibration loses on each text, and print a table for each context."""
    results = {
        n_ctx: {
            name: measured_plan(
                "calibration-texts", studies / f"calibration-texts-{n_ctx}-{number}",
                calibration=name, chunks=max(2, chunks * CONTEXTS[0] // n_ctx), n_ctx=n_ctx, **options,
            )
            for number, name in enumerate((calibration, home, f"{calibration},{home}"))
        }
        for n_ctx in CONTEXTS
    }  # fmt: skip
    found = {n_ctx: {name: as_json(study) for name, study in of.items()} for n_ctx, of in results.items()}
    (docs / "calibration-texts.json").write_text(json_text(found, indent=1) + "\n")
    for n_ctx, of in results.items():
        print_table(n_ctx, of)


def print_table(n_ctx: int, studies: dict[str, StudyResult]) -> None:
    """As Markdown: a row a method and calibration, a column a text, KL divergence with its standard error over chunks."""
    texts = [text.text for text in next(iter(studies.values())).cells[0].texts]
    click.echo(f"\ncontext {n_ctx}\n\n| | calibrated on | " + " | ".join(texts) + " |\n|---|---|" + "---|" * len(texts))
    for name, study in studies.items():
        for cell in study.cells:
            errors = (mean_and_standard_error(np.array(text.kld_chunks)) for text in cell.texts)
            losses = " | ".join(f"{mean:.4f} ± {error:.4f}" for mean, error in errors)
            click.echo(f"| {cell.method} | {name} | {losses} |")


if __name__ == "__main__":
    main()
