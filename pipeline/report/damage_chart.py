"""A chart of what each projection of each layer costs when it alone is operated on."""

from typing import Any

import altair as alt


def damage_chart(found: dict[str, Any], metric: str) -> alt.LayerChart:
    """KL divergence by layer on a log scale, a line for each of q, k, v and all three, with 95 % intervals.

    `found` is what `pipeline.cli.damage.damage` returns.
    """
    rows = [
        {"layer": layer["layer"], "targets": "+".join(targets), **{k: cell[k] for k in ("kld_mean", "low", "high")}}
        for layer in found["layers"]
        for targets, cell in layer.items()
        if targets != "layer" and cell["kld_mean"] > 0
    ]
    smallest = min(row["kld_mean"] for row in rows) / 2
    for row in rows:
        row["low"] = max(row["low"] or row["kld_mean"], smallest)  # a log scale has no 0
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        color=alt.Color("targets:N", title="operated on", sort=["q", "k", "v", "q+k+v"]),
    )
    scale = alt.Scale(type="log")
    points = base.mark_line(point=True).encode(
        y=alt.Y("kld_mean:Q", title="KL divergence, nats a token", scale=scale),
        tooltip=["layer:O", "targets:N", alt.Tooltip("kld_mean:Q", format=".4f")],
    )
    bars = base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    subtitle = f"metric {metric}, threshold {found['threshold']:g}, {found['text']}, {found['chunks']} chunks"
    title = alt.TitleParams("What a layer's projections cost, operated on alone", subtitle=subtitle, anchor="start")
    return (points + bars).properties(width=640, height=300, title=title)
