"""Charts of how a model's attention spreads its energy, and of how alike its layers are; from what `inspect` computes."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np

from pipeline.subspaces import mean_of_pairs

Rows = list[dict[str, Any]]

POINTS = 48  # at most, on a line: ranks crowd at the low end, where lines bend
BELOW, AT, ABOVE, ITSELF = "#2166ac", "#ffffff", "#b2182b", "#999999"


def spectrum_chart(layers: Sequence[dict[str, Any]], metric: str) -> alt.Chart:
    """Explained variance by rank for q, k, v and k+v, a line a layer; `layers` are from `pipeline.subspaces.spectrum`."""
    groups = list(layers[0]["explained"])
    rows = [
        {"group": "+".join(group), **point} for layer in layers for group in groups for point in _points(layer, group)
    ]
    return (
        alt.Chart(_data(rows))
        .mark_line(strokeWidth=1, opacity=0.8)
        .encode(
            x=alt.X("rank:Q", title="components kept", axis=alt.Axis(tickCount=5)),
            y=alt.Y("share:Q", title="share of the variance", scale=alt.Scale(domain=[0, 1])),
            color=_by_layer(),
            detail="layer:O",
            tooltip=["layer:O", "rank:Q", alt.Tooltip("share:Q", format=".4f")],
        )
        .properties(width=260, height=200)
        .facet(facet=alt.Facet("group:N", sort=["+".join(g) for g in groups], title=None), columns=2)
        .resolve_scale(x="independent")
        .properties(title=_title("Variance explained by the leading components", metric))
    )


def within_chart(layers: Sequence[dict[str, Any]], columns: int, metric: str) -> alt.HConcatChart:
    """How much of v's energy lies in k's leading directions, and the reverse, a line a layer.

    `layers` are from `pipeline.subspaces.energies_within`. Beside them means over layers: the share in its own leading
    directions, which nothing can exceed, and in those of random weights; and r / `columns`, that of a random subspace.
    """
    panels = [_within(layers, columns, role, of) for role, of in ("vk", "kv")]
    return alt.hconcat(*panels).properties(title=_title("Energy of one in the leading directions of the other", metric))


def overlap_chart(compared: dict[str, Any], metric: str) -> alt.ConcatChart:
    """The overlap of the k+v subspaces of each pair of layers, a heat map a rank; `compared` as `compared_layers` gives it.

    White is the mean over pairs of what random weights would have under the same metric, red more, blue less.
    """
    panels = [
        _heat_map(compared["layers"], overlap, mean_of_pairs(weights), f"rank {rank}", f"random subspaces {random:.3f}")
        for rank, random, weights, overlap in zip(
            *(compared[key] for key in ("ranks", "random", "random_weights", "overlap")), strict=True
        )
    ]
    return (
        alt.concat(*panels, columns=2)
        .resolve_scale(color="independent")
        .properties(title=_title("Overlap of the subspaces that k+v read, between layers", metric))
    )


def _within(layers: Sequence[dict[str, Any]], columns: int, role: str, of: str) -> alt.LayerChart:
    key = f"{role}_in_{of}"
    rows = [point for layer in layers for point in _points({**layer, "explained": layer}, key)]
    count = min(len(layer[key]) for layer in layers)
    means = {
        what: np.mean([layer[name][:count] for layer in layers], axis=0)
        for what, name in (("its own (mean)", f"{role}_in_{role}"), ("random weights (mean)", f"{role}_in_random"))
    }
    means["random subspace"] = np.arange(1, count + 1) / columns
    references: Rows = [
        {"rank": rank, "share": float(shares[rank - 1]), "within": what}
        for what, shares in means.items()
        for rank in _ranks(count)
    ]
    x = alt.X("rank:Q", title=f"leading directions of {of}", axis=alt.Axis(tickCount=5))
    y = alt.Y("share:Q", title=f"share of {role}'s energy", scale=alt.Scale(domain=[0, 1]))
    lines = (
        alt.Chart(_data(rows))
        .mark_line(strokeWidth=1, opacity=0.8)
        .encode(x=x, y=y, color=_by_layer(), detail="layer:O", tooltip=["layer:O", "rank:Q", "share:Q"])
    )
    marks = (
        alt.Chart(_data(references))
        .mark_line(strokeWidth=2, color="black")
        .encode(
            x=x,
            y=y,
            strokeDash=alt.StrokeDash(
                "within:N", title="within", sort=None, legend=alt.Legend(symbolStrokeColor="black")
            ),
        )
    )
    return (lines + marks).properties(width=300, height=240, title=f"{role} within {of}")


def _heat_map(
    numbers: Sequence[int], overlap: Sequence[Sequence[float]], expected: float, title: str, subtitle: str
) -> alt.LayerChart:
    rows: Rows = [
        {"one": one, "other": other, "overlap": overlap[i][j]}
        for i, one in enumerate(numbers)
        for j, other in enumerate(numbers)
    ]
    size = max(220, min(9 * len(numbers), 420))
    scale = alt.Scale(domain=[0, expected, max(1.0, expected)], range=[BELOW, AT, ABOVE], interpolate="rgb")
    ticks = alt.Axis(values=list(numbers)[:: max(len(numbers) // 10, 1)], labelAngle=0)
    cells = (
        alt.Chart(_data(rows))
        .mark_rect(aria=False)  # nobody wants 900 cells read out
        .encode(
            x=alt.X("other:O", title="layer", axis=ticks),
            y=alt.Y("one:O", title="layer", axis=ticks),
            color=alt.Color("overlap:Q", title="overlap", scale=scale),
            tooltip=["one:O", "other:O", alt.Tooltip("overlap:Q", format=".3f")],
        )
    )
    diagonal = (
        alt.Chart(_data([{"one": number, "other": number} for number in numbers]))
        .mark_rect(color=ITSELF, aria=False)
        .encode(x="other:O", y="one:O")
    )
    white = f"white: random weights {expected:.3f}; {subtitle}"
    return (cells + diagonal).properties(width=size, height=size, title=alt.TitleParams(title, subtitle=white))


def _data(rows: Rows) -> alt.InlineData:
    return alt.InlineData(values=rows)


def _by_layer() -> alt.Color:
    return alt.Color("layer:Q", title="layer", scale=alt.Scale(scheme="viridis"))


def _points(layer: dict[str, Any], group: str) -> Iterable[dict[str, Any]]:
    shares = layer["explained"][group]
    return ({"layer": layer["layer"], "rank": rank, "share": shares[rank - 1]} for rank in _ranks(len(shares)))


def _ranks(count: int) -> list[int]:
    """At most POINTS ranks from 1 to `count`, denser at the low end."""
    return sorted({round(rank) for rank in np.geomspace(1, count, POINTS)} | {count})


def _title(text: str, metric: str) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=f"metric {metric}", anchor="start")
