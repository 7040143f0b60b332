"""README's table: what quantisation, plain surgery and calibrated surgery lose on texts of several kinds.

    python -m studies.front --calibrate self,valid.txt --evaluate test.txt --evaluate python-docs --chunks 8

Measures studies/front.yaml and writes docs/front.json and README's table, with what each model answers.
"""

from pathlib import Path
from textwrap import shorten
from typing import Any

import click

from pipeline.compare.found import BaseResult, CellResult, StudyResult
from studies.documents import document, markdown
from studies.measured import Study, cell_of, measured, study_options

ANSWER_TOKENS = 48


@click.command(cls=Study)
@study_options
def main(docs: Path, calibration: str, **options: Any) -> None:
    """Measure what README shows."""
    results = measured("front", docs=docs, calibration=calibration, answer_tokens=ANSWER_TOKENS, **options)
    document(docs.parent / "README.md", "front", table(results, calibration))
    document(docs.parent / "README.md", "answers", answers(results))


def lines(results: StudyResult, calibration: str) -> dict[str, CellResult]:
    """What each cell is, in words."""
    kv = {"method": "shared-kv", "budget": 0.5556}
    return {
        "Q4_K_M, no surgery": cell_of(results, method="none", quant="Q4_K_M"),
        "plain PCA, 99 % of the variance of q, k and v": cell_of(results, threshold=0.99),
        "plain PCA, 56 % of k's and v's numbers": cell_of(results, metric="weights", **kv),
        f"**the same, calibrated on `{calibration}`**": cell_of(results, metric="attention", **kv),
    }


def table(results: StudyResult, calibration: str) -> str:
    """KL divergence with half of its 95 % interval over chunks, a column a text."""
    rows = [
        [name, *(f"{text.kld_mean:.2f} ± {(text.kld_high - text.kld_low) / 2:.2f}" for text in cell.texts)]
        for name, cell in lines(results, calibration).items()
    ]
    return markdown(["KL divergence", *(text.text for text in results.cells[0].texts)], rows)


def answers(results: StudyResult) -> str:
    """How the source and each of the last two begin to answer the study's question."""
    *_, plain, calibrated = lines(results, "").values()
    said: dict[str, BaseResult | CellResult] = {
        "the source": results.base,
        "calibrated": calibrated,
        "plain PCA": plain,
    }
    return "\n".join(f"- {name}: *{_answer(model)}*" for name, model in said.items())


def _answer(model: BaseResult | CellResult) -> str:
    """Its first sentence, as far as it fits on a line, in which nothing is taken for Markdown."""
    said, ended, _ = "".join(model.answer or ["(none)"]).partition(". ")
    text = shorten(said + ended, 160, placeholder=" …")
    return "".join("\\" + letter if letter in "\\`*_<>[]" else letter for letter in text)


if __name__ == "__main__":
    main()
