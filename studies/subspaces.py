"""What do k, v and layers have in common, beside random weights seen under the same metric? Tables and pictures.

    python -m studies.subspaces --calibrate valid.txt

Compares nothing but weights, so it takes no text to evaluate on; writes docs/overlap-*.svg and the tables in
docs/findings.md.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.calibration.obtain import obtain_calibration
from pipeline.inputs.models import EMBEDDED_NAME, open_model
from pipeline.layers import AttentionLayers
from pipeline.report.charts import write_chart
from pipeline.report.subspace_charts import overlap_chart, within_chart
from pipeline.subspaces.outline import between_outline, within_outline
from pipeline.subspaces.similarity import Lens, mean_of_pairs, overlap
from studies.documents import document, markdown, watched
from studies.measured import Study

METRICS = ("weights", "inputs", "attention")
DRAWN = "inputs"


@click.command(cls=Study)
@click.option("--docs", default="docs", show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--calibrate", "calibration", required=True, help="Statistics, or a text to calibrate on.")
@click.option("--threads", default=0, show_default=True, help="Processors to use; 0 for all.")
def main(docs: Path, calibration: str, threads: int) -> None:
    """Compare subspaces under each metric, and draw them under one."""
    model = open_model(EMBEDDED_NAME)
    statistics = obtain_calibration(model, calibration, threads=threads)
    layers = AttentionLayers(model, statistics)
    found = {metric: overlap(Lens(layers, metric, "keep"), lambda doing: None) for metric in METRICS}
    document(docs / "findings.md", "overlap-layers", layers_table(found))
    document(docs / "findings.md", "overlap-k-v", within_table(found))
    between, within = found[DRAWN]["between"], found[DRAWN]["within"]
    for name, chart in (
        ("overlap-layers", overlap_chart(between_outline(between), DRAWN)),
        ("overlap-k-v", within_chart(within_outline(within, between["columns"]), DRAWN)),
    ):
        path = docs / f"{name}.svg"
        with watched(path):
            write_chart(chart, path, force=True)


def layers_table(found: dict[str, dict[str, Any]]) -> str:
    """Overlaps of the k+v subspaces of layers: means over pairs, beside those of random weights."""
    rows = []
    for metric, compared in found.items():
        between = compared["between"]
        for rank, own, weights, random in zip(
            *(between[key] for key in ("ranks", "overlap", "random_weights", "random")), strict=True
        ):
            means = (mean_of_pairs(matrix, distance) for distance in (1, None) for matrix in (own, weights))
            rows.append([metric, str(rank), *(f"{mean:.3f}" for mean in means), f"{random:.3f}"])
    beside = "random weights"
    return markdown(["metric", "rank", "neighbours", beside, "all pairs", beside, "random subspaces"], rows)


def within_table(found: dict[str, dict[str, Any]]) -> str:
    """Shares of v's energy in k's leading directions and of k's in v's, means over layers."""
    rows = []
    for metric, compared in found.items():
        full = len(compared["within"][0]["v_in_k"])
        for rank in (rank for rank in compared["between"]["ranks"] if rank <= full):
            keys = ("v_in_k", "v_in_random", "v_in_v", "k_in_v", "k_in_random", "k_in_k")
            means = (np.mean([layer[key][rank - 1] for layer in compared["within"]]) for key in keys)
            rows.append([metric, str(rank), *(f"{mean:.3f}" for mean in means)])
    headings = ["v in k's", "v in random", "v in its own", "k in v's", "k in random", "k in its own"]
    return markdown(["metric", "directions", *headings], rows)


if __name__ == "__main__":
    main()
