"""Does it pay that layers share components? KL divergence at equal stored numbers, paired with sharing within a layer.

    python -m studies.cross_layer --calibrate valid.txt --evaluate test.txt

Measures studies/cross_layer.yaml and writes docs/cross-layer.json, docs/cross-layer.svg and the table in docs/findings.md.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.compare.found import CellResult, StudyResult
from pipeline.evaluation.statistics import interval
from studies.documents import document, markdown
from studies.measured import Study, cell_of, loss, measured, study_options
from studies.pictures import drawn

BUDGETS = {0.4167: "tab:blue", 0.5556: "tab:green", 0.7639: "tab:orange", 0.9462: "tab:red"}


@click.command(cls=Study)
@study_options
def main(docs: Path, **options: Any) -> None:
    """Measure what sharing between layers loses at equal stored numbers, and draw it."""
    results = measured("cross-layer", docs=docs, **options)
    document(docs / "findings.md", "cross-layer", table(results))
    draw(results, docs / "cross-layer.svg")


def beside_shared_kv(results: StudyResult, cell: CellResult) -> tuple[float, float, float]:
    """By what share of its KL divergence a cell loses more than shared-kv; the 95 % interval, paired by chunk."""
    other = cell_of(results, method="shared-kv", metric=cell.metric, budget=cell.budget)
    pairs = zip(cell.texts, other.texts, strict=True)
    mean, low, high = interval(*(np.array(mine.kld_chunks) - np.array(its.kld_chunks) for mine, its in pairs))
    return mean / other.kld_mean, low / other.kld_mean, high / other.kld_mean


def table(results: StudyResult) -> str:
    """The cells with half of their 95 % intervals over chunks, the last column's paired by chunk."""
    rows = []
    for cell in results.cells:
        mean, low, high = beside_shared_kv(results, cell)
        beside = "" if cell.method == "shared-kv" else f"{mean:+.1%} ({low:+.1%} to {high:+.1%})"
        stored = f"{cell.factors / cell.dense:.2%}" if cell.factors and cell.dense else ""
        rows.append([str(cell.metric), str(cell.budget), sharing(cell), stored, loss(cell), beside])
    return markdown(["metric", "budget", "what shares one basis", "stored", "KL divergence", "beside shared-kv"], rows)


def sharing(cell: CellResult) -> str:
    """What shares components, in words."""
    if cell.group_layers is None:
        return {"shared-kv": "k+v of a layer (`shared-kv`)", "separate": "nothing (`separate`)"}[cell.method]
    words = {"0/1-5": "five neighbours, layer 0 alone", "0,15": "five alike, compared at a sixth of the full rank"}
    listed = next((name for start, name in words.items() if cell.group_layers.startswith(start)), None)
    return listed or f"`{cell.group_layers}`"


def draw(results: StudyResult, path: Path) -> None:
    """KL divergence beside that of shared-kv over the number of layers that share, a line a budget."""
    with drawn(path) as axes:
        axes.axhline(0, color="black", linewidth=0.8)
        for budget, colour in BUDGETS.items():
            for kind, marker, line, aside, label in (
                ("neighbours", "o", "-", 1.0, f"neighbours, {budget:.0%} stored"),
                ("stride", "x", "", 1.05, f"far apart, {budget:.0%} stored"),
                ("similar", "^", "--", 0.95, f"alike, {budget:.0%} stored"),
            ):
                chosen = [
                    (cell, groups)
                    for cell in results.cells
                    if (groups := cell.group_layers) and (cell.metric, cell.budget) == ("attention", budget)
                    and _kind(groups) == kind
                ]  # fmt: skip
                if chosen:
                    found = 100 * np.array([beside_shared_kv(results, cell) for cell, _ in chosen])
                    sizes = [aside * _size(groups) for _, groups in chosen]
                    reach = np.abs(found[:, 1:] - found[:, :1]).T
                    style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, "label": label}
                    axes.errorbar(sizes, found[:, 0], reach, **style)
        axes.set_xscale("log")
        axes.set_xticks([2, 3, 5, 10, 15, 30], ["2", "3", "5", "10", "15", "30"])
        axes.minorticks_off()
        axes.set_xlabel("layers that share components of k+v")
        axes.set_ylabel("KL divergence beside a basis a layer, %")


def _kind(groups: str) -> str:
    kind, _, _ = groups.rpartition(":")
    return "listed" if "/" in groups else kind or "neighbours"


def _size(groups: str, layers: int = 30) -> int:
    """How many of the layers share components."""
    kind, _, number = groups.rpartition(":")
    if number == "all":
        return layers
    return layers // int(number) if kind == "stride" else int(number)


if __name__ == "__main__":
    main()
