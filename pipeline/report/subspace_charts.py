"""Charts of how a model's attention spreads its energy, and of how alike its layers are; from `subspaces/outline.py`."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt

from pipeline.projection import shown_name
from pipeline.report.chart_parts import chart_of
from pipeline.report.figures import COLOURS, REFERENCE_COLOUR, Chart

Outline = dict[str, Any]

MOST_LAYER_LABELS = 10
LAYER_COLOURS = (COLOURS["shared-kv"], COLOURS["latent"], COLOURS["separate"])  # first, middle and last layer
REFERENCES = {
    "own": ("its own directions, mean", [1, 0]),
    "random_weights": ("those of random weights, mean", [6, 3]),
    "random": ("a random subspace", [2, 2]),
}


def spectrum_panel(outline: Outline, group: str, *, legend: bool) -> alt.Chart:
    """Explained variance by rank of a group such as `kv`, a line a layer that has it."""
    found = outline["groups"][group]
    return layer_lines(
        found.get("layers", outline["layers"]),
        found,
        alt.Y("share:Q", title="share of the variance"),
        "components kept",
        legend=legend,
    )


def within_panel(outline: Outline, pair: str, *, legend: bool) -> Chart:
    """How much of v's energy lies in k's leading directions (`v_in_k`), or the reverse, a line a layer, with references."""
    (role, of), found = pair.split("_in_"), outline[pair]
    y = alt.Y("share:Q", title=f"share of {role}'s energy")
    lines = layer_lines(outline["layers"], found, y, f"leading directions of {of}", legend=legend)
    rows = [
        {"within": name, "rank": found["ranks"], "share": found[key], "dash": dash}
        for key, (name, dash) in REFERENCES.items()
    ]
    names, dashes = zip(*REFERENCES.values(), strict=True)
    key = alt.Legend(title="energy within", symbolStrokeColor=REFERENCE_COLOUR, labelLimit=220) if legend else None
    references = (
        chart_of(rows)
        .transform_flatten(["rank", "share"])
        .mark_line(strokeWidth=2.5, color=REFERENCE_COLOUR)
        .encode(
            x="rank:Q",
            y="share:Q",
            strokeDash=alt.StrokeDash("within:N", scale=alt.Scale(domain=names, range=dashes), legend=key),
            tooltip="within:N",
        )
    )
    return alt.layer(lines, references)


def layer_lines(layers: Sequence[int], found: Outline, y: alt.Y, title: str, *, legend: bool) -> alt.Chart:
    """`found["shares"]` (layers, R) over `found["ranks"]` (R,), titled `title`, each layer in its colour."""
    rows = [
        {"layer": layer, "rank": found["ranks"], "share": shares}
        for layer, shares in zip(layers, found["shares"], strict=True)
    ]
    x = alt.X("rank:Q", title=title, axis=alt.Axis(tickCount=5), scale=alt.Scale(nice=False))
    return (
        chart_of(rows)
        .transform_flatten(["rank", "share"])
        .mark_line(strokeWidth=1, opacity=0.8)
        .encode(
            x=x,
            y=y.scale(domain=[0, 1]).axis(tickCount=5),
            color=alt.Color("layer:Q", scale=layer_scale(layers), legend=alt.Legend() if legend else None),
            detail="layer:O",
            tooltip="layer:O",
        )
    )


def layer_scale(layers: Sequence[int]) -> alt.Scale:
    middle, half = (layers[0] + layers[-1]) / 2, max((layers[-1] - layers[0]) / 2, 0.5)
    return alt.Scale(domain=[middle - half, middle, middle + half], range=list(LAYER_COLOURS), interpolate="lab")


def overlap_panel(layers: Sequence[int], found: Outline, *, orient: Literal["right", "bottom"]) -> alt.Chart:
    """A heat map of the overlap of the k+v subspaces of each pair of layers at one rank.

    The middle of the scale is the mean over pairs of what random weights would have under the same metric.
    """
    earlier = found["pairs"]
    rows = [
        {
            "layer": layer,
            "other": [*layers[:i], *layers[i + 1 :]],
            "overlap": [*earlier[i], *(later[i] for later in earlier[i + 1 :])],
        }
        for i, layer in enumerate(layers)
    ]
    expected = found["random_weights"]
    scale = alt.Scale(domain=[0, expected, max(1.0, expected)], range="diverging", interpolate="rgb")
    legend = alt.Legend(title="overlap", orient=orient, values=[0, expected, 1], format=".2f", gradientLength=180)
    labelled = list(layers)[:: math.ceil(len(layers) / MOST_LAYER_LABELS)]
    axis = alt.Axis(values=labelled, labelAngle=0)
    return (
        chart_of(rows)
        .transform_flatten(["other", "overlap"])
        .mark_rect(aria=False)  # nobody wants 900 cells read out
        .encode(
            x=alt.X("other:O", title="layer", axis=axis, scale=alt.Scale(domain=list(layers))),
            y=alt.Y("layer:O", title="layer", axis=axis, scale=alt.Scale(domain=list(layers))),
            color=alt.Color("overlap:Q", scale=scale, legend=legend),
            tooltip=["layer:O", "other:O", alt.Tooltip("overlap:Q", format=".3f")],
        )
    )


def spectrum_chart(outline: Outline, metric: str) -> alt.ConcatChart:
    """Explained variance by rank for each group such as k+v, as a picture."""
    panels: list[Chart] = [
        spectrum_panel(outline, group, legend=True).properties(width=260, height=200, title=shown_name(group))
        for group in outline["groups"]
    ]
    return alt.concat(*panels, columns=2, title=_title("Variance explained by the leading components", metric))


def within_chart(outline: Outline, metric: str) -> alt.ConcatChart:
    """How much of v's energy lies in k's leading directions, and the reverse, as a picture."""
    panels = [
        within_panel(outline, pair, legend=True).properties(width=300, height=240, title=pair_title(pair))
        for pair in ("v_in_k", "k_in_v")
    ]
    return alt.concat(*panels, title=_title("Energy of one in the leading directions of the other", metric))


def overlap_chart(outline: Outline, metric: str) -> alt.ConcatChart:
    """The overlap of the k+v subspaces of each pair of layers, a heat map a rank, as a picture."""
    size = max(220, min(9 * len(outline["layers"]), 420))
    panels = [
        overlap_panel(outline["layers"], found, orient="right").properties(
            width=size, height=size, title=alt.TitleParams(f"rank {found['rank']}", subtitle=chance(found))
        )
        for found in outline["ranks"]
    ]
    return alt.concat(
        *panels, columns=2, title=_title("Overlap of the subspaces that k+v read, between layers", metric)
    ).resolve_scale(color="independent")


def pair_title(pair: str) -> str:
    return pair.replace("_in_", " within ")


def chance(found: Outline) -> str:
    """What a heat map's numbers are to be held against."""
    return f"random weights {found['random_weights']:.3f}, subspaces {found['random']:.3f}"


def _title(text: str, metric: str) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=f"metric {metric}", anchor="start")
