"""Does it pay that layers share components? KL divergence at equal stored numbers, paired with sharing within a layer.

    python -m studies.cross_layer --calibrate valid.txt --evaluate test.txt

Operates on k and v with components shared by groups of layers of several sizes and kinds, evaluates on text that was
not calibrated on, and writes docs/cross-layer.json and docs/cross-layer.svg. A cell that the JSON file has already is
not measured again. The source is decoded once for all cells; its logits take 200 KB a scored token.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from native.evaluate import BATCH_TOKENS, decode_columns, scored_positions
from native.model import Context, ContextOptions, load_model, open_context
from native.scoring import score_tokens
from pipeline.calibration.calibrate import calibrate
from pipeline.calibration.statistics_file import Calibration
from pipeline.evaluation.statistics import mean_and_standard_error
from pipeline.files.models import EMBEDDED_NAME, open_model
from pipeline.files.texts import read_text
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from studies.pictures import drawn

N_CTX = 512
BUDGETS = (0.5556, 0.4167, 0.9462, 0.7639)
LAYER_0_ALONE = "0/1-5/6-10/11-15/16-20/21-25/26-29"
ALIKE_AT_A_SIXTH = "0,15,21,22,27/1,2,17,18,20/3,4,5,7,8/6,9,10,11,13/12,14,16,19,29/23,24,25,26,28"
"""What similar:5 would be if subspaces were compared at a sixth of the full rank, instead of a third."""
KINDS = {
    ("attention", 0.5556): (
        "2", "3", "5", "10", "15", "all", "stride:15", "stride:6", "similar:2", "similar:3", "similar:5", "similar:10",
        LAYER_0_ALONE, ALIKE_AT_A_SIXTH,
    ),
    ("attention", 0.4167): ("2", "3", "5", "10", "similar:2", "similar:5"),
    ("attention", 0.9462): ("2", "similar:5"),
    ("attention", 0.7639): ("2", "similar:5"),
    ("weights", 0.5556): ("2", "all"),
}  # fmt: skip
"""What --group-layers is, by metric and budget; each beside shared-kv and separate at the same stored numbers."""


def plans() -> Iterator[Plan]:
    common: dict[str, Any] = {"targets": "kv", "mean": "none", "threshold": None}
    for (metric, budget), kinds in KINDS.items():
        for method in ("shared-kv", "separate"):
            yield Plan(method=method, metric=metric, budget=budget, **common)
        for kind in kinds:
            yield Plan(method="cross-layer", group_layers=kind, metric=metric, budget=budget, **common)


def key(plan: Plan) -> str:
    return " ".join(filter(None, (plan.metric, str(plan.budget), plan.method, plan.group_layers)))


@click.command()
@click.option("--calibrate", "calibration_text", required=True, help="Text to calibrate on.")
@click.option("--evaluate", "evaluation_text", required=True, help="Another text, to evaluate on.")
@click.option("--chunks", default=10, show_default=True, help="Chunks of 512 tokens to evaluate on.")
@click.option("--threads", default=0, help="Processors for decoding; 0 for all.", show_default=True)
@click.option("--docs", default="docs", show_default=True, type=click.Path(path_type=Path, exists=True))
def main(calibration_text: str, evaluation_text: str, chunks: int, threads: int, docs: Path) -> None:
    """Measure what sharing between layers loses at equal stored numbers, and draw it."""
    path = docs / "cross-layer.json"
    cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if missing := [plan for plan in plans() if key(plan) not in cells]:
        model, text = open_model(EMBEDDED_NAME), read_text(evaluation_text)
        calibration = calibrate(model, read_text(calibration_text))
        base = Evaluation(model, text.content, chunks, threads)
        for plan in missing:
            cells[key(plan)] = measure(model, plan, calibration, base) | {"text_sha256": text.sha256}
            path.write_text(json.dumps(cells, indent=1) + "\n")
            click.echo(f"{key(plan)}: KL {cells[key(plan)]['kld_mean']:.4f} +/- {cells[key(plan)]['kld_se']:.4f}")
    print_table(cells)
    draw(cells, docs / "cross-layer.svg")


class Evaluation:
    """A text decoded once by the source, its logits kept, to hold operated models against."""

    def __init__(self, model: GGUFModel, text: str, chunks: int, threads: int) -> None:
        together = BATCH_TOKENS // N_CTX
        self.options = ContextOptions(n_ctx=N_CTX, n_batch=BATCH_TOKENS, n_sequences=together, threads=threads)
        with load_model(str(model.path)) as source:
            tokens = source.tokenize(text, special=False)
            self.grid = tokens[: chunks * N_CTX].reshape(chunks, N_CTX)
        self.base = list(self._logits(model.path))

    def divergences(self, path: Path) -> np.ndarray:
        """KL divergence from the source at every scored token, in nats: (chunks, tokens scored in each)."""
        positions = np.arange(N_CTX // 2 + 1, N_CTX)
        targets = self.grid[:, positions]
        return np.array([score_tokens(*each).kld for each in zip(self._logits(path), targets, self.base, strict=True)])

    def _logits(self, path: Path) -> Iterator[np.ndarray]:
        """The logits of the second half of each chunk, float32 (tokens, vocabulary)."""
        with load_model(str(path)) as model, open_context(model, self.options) as context:
            for start in range(0, len(self.grid), self.options.n_sequences):
                yield from self._decode(context, self.grid[start : start + self.options.n_sequences])

    def _decode(self, context: Context, chunks: np.ndarray) -> list[np.ndarray]:
        context.clear()
        ((positions, outputs),) = scored_positions(N_CTX, N_CTX)
        decode_columns(context, chunks, positions, outputs)
        return np.split(context.logits(len(chunks) * int(outputs.sum())).copy(), len(chunks))


def measure(model: GGUFModel, plan: Plan, calibration: Calibration, base: Evaluation) -> dict[str, Any]:
    """What `plan` loses, what it stores, and the predicted damage that its components leave out."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "operated.gguf"
        report = operate(model, output, plan, calibration=None if plan.metric == "weights" else calibration)
        divergences = base.divergences(output)
    mean, error = mean_and_standard_error(divergences.ravel())
    return {
        "kld_mean": mean,
        "kld_se": error,
        "kld_chunks": divergences.mean(axis=1).tolist(),
        "stored_share": report.factor_numbers / report.dense_numbers,
        "ranks": {",".join(map(str, group.layers)): group.rank for group in report.groups if group.group == "kv"},
        "decomposition_seconds": report.decomposition_seconds,
    }


def against_shared_kv(cells: dict[str, Any], plan: Plan) -> tuple[float, float]:
    """KL of a cell over that of shared-kv less 1, and its standard error, paired by chunk."""
    own = np.array(cells[key(plan)]["kld_chunks"])
    other = np.array(cells[key(replace(plan, method="shared-kv", group_layers=None))]["kld_chunks"])
    mean, error = mean_and_standard_error(own - other)
    return mean / other.mean(), error / other.mean()


def print_table(cells: dict[str, Any]) -> None:
    """The cells as a Markdown table."""
    click.echo("| metric | budget | components shared by | stored | KL | beside shared-kv |\n|---|---|---|---|---|---|")
    for plan in plans():
        cell = cells[key(plan)]
        change, error = against_shared_kv(cells, plan)
        beside = "" if plan.method == "shared-kv" else f"{change:+.1%} ± {error:.1%}"
        name = f"k+v, {plan.group_layers} layers" if plan.group_layers else plan.method
        click.echo(
            f"| {plan.metric} | {plan.budget} | {name} | {cell['stored_share']:.2%}"
            f" | {cell['kld_mean']:.4f} ± {cell['kld_se']:.4f} | {beside} |"
        )


def draw(cells: dict[str, Any], path: Path) -> None:
    """KL divergence beside that of shared-kv over the number of layers that share, a line a budget, bars of two errors."""
    with drawn(path) as axes:
        axes.axhline(0, color="black", linewidth=0.8)
        layers = 30
        for budget, colour in zip(sorted(BUDGETS), ("tab:blue", "tab:green", "tab:orange", "tab:red"), strict=True):
            points = [plan for plan in plans() if (plan.metric, plan.budget) == ("attention", budget)]
            for kind, marker, line, beside, label in (
                ("neighbours", "o", "-", 1.0, f"neighbours, {budget:.0%} stored"),
                ("stride", "x", "", 1.05, f"far apart, {budget:.0%} stored"),
                ("similar", "^", "--", 0.95, f"alike, {budget:.0%} stored"),
            ):
                chosen = [plan for plan in points if plan.method == "cross-layer" and _kind(plan) == kind]
                if not chosen:
                    continue
                sizes = [beside * _size(plan, layers) for plan in chosen]
                changes, errors = zip(*(against_shared_kv(cells, plan) for plan in chosen), strict=True)
                means, bars = 100 * np.array(changes), 200 * np.array(errors)
                axes.errorbar(
                    sizes, means, bars, color=colour, marker=marker, linestyle=line, markersize=5, label=label
                )
        axes.set_xscale("log")
        axes.set_xticks([2, 3, 5, 10, 15, 30], ["2", "3", "5", "10", "15", "30"])
        axes.minorticks_off()
        axes.set_xlabel("layers that share components of k+v")
        axes.set_ylabel("KL divergence beside a basis a layer, %")


def _kind(plan: Plan) -> str:
    kind, _, number = (plan.group_layers or "").rpartition(":")
    return "listed" if "/" in number else kind or "neighbours"


def _size(plan: Plan, layers: int) -> int:
    """How many layers share components."""
    kind, _, number = (plan.group_layers or "").rpartition(":")
    if number == "all":
        return layers
    return layers // int(number) if kind == "stride" else int(number)


if __name__ == "__main__":
    main()
