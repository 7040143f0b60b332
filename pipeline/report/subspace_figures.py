"""The figures of what a study's source reads: its spectra, what k and v have in common, how alike its layers are."""

from typing import Any

from pipeline.projection import shown_name
from pipeline.report.cells import Results
from pipeline.report.figures import REFERENCE_COLOUR, Figure, Key, Panel, View
from pipeline.report.subspace_charts import (
    LAYER_COLOURS,
    REFERENCES,
    chance,
    overlap_chart,
    overlap_panel,
    pair_title,
    spectrum_chart,
    spectrum_panel,
    within_chart,
    within_panel,
)

METRICS = {"weights": "By weights", "inputs": "By inputs"}
LINE_HEIGHT, MAP_HEIGHT = 220, 400  # pixels
METRICS_CAPTION = " By inputs, a direction counts by how much of it the calibration text has."


def subspace_figures(results: Results) -> list[Figure]:
    """None for a study of which the source was not looked into; `results["subspaces"]` is by metric."""
    found = {metric: results["subspaces"][metric] for metric in METRICS if metric in results["subspaces"]}
    if not found:
        return []
    more = METRICS_CAPTION if len(found) > 1 else ""
    layers = next(iter(found.values()))["spectrum"]["layers"]
    keys = layer_keys(layers)
    references = [Key(name, REFERENCE_COLOUR, dash=" ".join(map(str, dash))) for name, dash in REFERENCES.values()]
    return [
        Figure(
            "spectrum",
            "What the source's attention reads",
            "How much of the variance the leading components explain, of q, k, v, and k and v stacked; a line a layer. The "
            f"sooner it rises, the fewer components will do.{more}",
            [spectrum_view(outline["spectrum"], metric) for metric, outline in found.items()],
            keys,
        ),
        Figure(
            "within",
            "What k and v have in common",
            "How much of the energy of one lies in the leading directions of the other; a line a layer. Only what is above "
            "random weights is in common, and no layer's line can rise above that of its own directions.",
            [within_view(outline["within"], metric) for metric, outline in found.items()],
            [*keys, *references],
        ),
        Figure(
            "between",
            "What layers have in common",
            "How much of what k and v read in one layer is read in another, 1 if it is the same. The middle of the scale is "
            "the overlap of random weights: sharing components between layers pays only well above it.",
            [between_view(outline["between"], metric) for metric, outline in found.items() if len(layers) > 1],
        ),
    ]


def layer_keys(layers: list[int]) -> list[Key]:
    """The first, the middle and the last of at least three layers, or as many as there are, in the colours of the lines."""
    if len(layers) == 1:
        return [Key(f"layer {layers[0]}", LAYER_COLOURS[1])]
    numbers = [layers[0], layers[len(layers) // 2], layers[-1]]
    colours = dict(zip(numbers, LAYER_COLOURS, strict=True))  # of two layers the middle is the last
    return [Key(f"layer {number}", colour) for number, colour in colours.items()]


def spectrum_view(outline: dict[str, Any], metric: str) -> View:
    panels = []
    for group in outline["groups"]:
        title = shown_name(group)
        chart = spectrum_panel(outline, group, legend=False).properties(height=LINE_HEIGHT)
        panels.append(Panel(title, chart, f"Variance of {title} explained by rank, {metric}"))
    return View(f"spectrum-{metric}", METRICS[metric], panels, spectrum_chart(outline, metric))


def within_view(outline: dict[str, Any], metric: str) -> View:
    panels = []
    for pair in ("v_in_k", "k_in_v"):
        chart = within_panel(outline, pair, legend=False).properties(height=LINE_HEIGHT)
        panels.append(Panel(pair_title(pair), chart, f"Energy of {pair_title(pair)} by rank, {metric}"))
    return View(f"within-{metric}", METRICS[metric], panels, within_chart(outline, metric))


def between_view(outline: dict[str, Any], metric: str) -> View:
    panels = []
    for found in outline["ranks"]:
        chart = overlap_panel(outline["layers"], found, orient="bottom").properties(height=MAP_HEIGHT)
        title = f"rank {found['rank']}: {chance(found)}"
        panels.append(Panel(title, chart, f"Overlap of layers at rank {found['rank']}, {metric}"))
    return View(f"between-{metric}", METRICS[metric], panels, overlap_chart(outline, metric))
