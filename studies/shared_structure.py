"""Do k and v share structure? KL divergence at equal stored numbers, with a picture.

    python -m studies.shared_structure --calibrate valid.txt --evaluate test.txt

Operates on k and v at four budgets with each method, evaluates on text that was not calibrated on, and writes
docs/shared-structure.json and docs/shared-structure.svg. A cell that the JSON file has already is not measured again.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline.calibration.calibrate import calibrate
from pipeline.evaluation.evaluate import evaluate
from pipeline.files.models import EMBEDDED_NAME, open_model
from pipeline.files.texts import read_text
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from studies.pictures import divergence_axis, drawn

BUDGETS = (0.4167, 0.5556, 0.7639, 0.9462)
LINES = {
    "random subspace": ("random", "weights", "tab:gray"),
    "plain PCA, k and v apart": ("separate", "weights", "tab:orange"),
    "plain PCA, k+v shared": ("shared-kv", "weights", "tab:red"),
    "calibrated PCA, k and v apart": ("separate", "attention", "tab:cyan"),
    "calibrated PCA, k+v shared": ("shared-kv", "attention", "tab:blue"),
}


@click.command()
@click.option("--calibrate", "calibration_text", required=True, help="Text to calibrate on.")
@click.option("--evaluate", "evaluation_text", required=True, help="Another text, to evaluate on.")
@click.option("--chunks", default=20, show_default=True, help="Chunks of 512 tokens to evaluate on.")
@click.option("--docs", default="docs", show_default=True, type=click.Path(path_type=Path, exists=True))
def main(calibration_text: str, evaluation_text: str, chunks: int, docs: Path) -> None:
    """Measure what each method loses at equal stored numbers, and draw it."""
    path = docs / "shared-structure.json"
    cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    model, text = open_model(EMBEDDED_NAME), read_text(evaluation_text)
    calibration = calibrate(model, read_text(calibration_text))
    for name, (method, metric, _) in LINES.items():
        for budget in BUDGETS:
            key = f"{name} {budget}"
            if key in cells:
                continue
            plan = Plan(method=method, metric=metric, targets="kv", mean="none", threshold=None, budget=budget)
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "operated.gguf"
                operate(model, output, plan, calibration=None if metric == "weights" else calibration)
                result = evaluate(output, text, base=model.path, chunks=chunks)
            keys = ("ppl", "ppl_se", "base_ppl", "kld_mean", "kld_se", "same_top", "chunks", "text_sha256")
            cells[key] = {key: result[key] for key in keys}
            path.write_text(json.dumps(cells, indent=1) + "\n")
            click.echo(f"{name}, budget {budget}: KL {result['kld_mean']:.4f} +/- {result['kld_se']:.4f}")
    print_table(cells)
    draw(cells, docs / "shared-structure.svg")


def print_table(cells: dict[str, Any]) -> None:
    """The cells as a Markdown table."""
    click.echo("| share of stored numbers |" + "".join(f" {budget} |" for budget in BUDGETS))
    click.echo("|---|" + "---|" * len(BUDGETS))
    for name in LINES:
        results = [cells[f"{name} {budget}"] for budget in BUDGETS]
        click.echo(f"| {name} |" + "".join(f" {r['kld_mean']:.3f} ± {r['kld_se']:.3f} |" for r in results))


def draw(cells: dict[str, Any], path: Path) -> None:
    """KL divergence over stored numbers, a line a method, both error bars and labels on the lines."""
    with drawn(path) as axes:
        for name, (_, _, colour) in LINES.items():
            results = [cells[f"{name} {budget}"] for budget in BUDGETS]
            means, errors = ([r[key] for r in results] for key in ("kld_mean", "kld_se"))
            shares = [100 * budget for budget in BUDGETS]
            axes.errorbar(shares, means, [1.96 * e for e in errors], color=colour, marker="o", markersize=4, label=name)
        divergence_axis(axes)
        axes.set_xlabel("numbers stored for k and v, % of the source's")


if __name__ == "__main__":
    main()
