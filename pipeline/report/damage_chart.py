"""What each projection of each layer costs when it alone is operated on: a chart, and the figure of a study's report."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import altair as alt

from pipeline.report.cells import Results, is_measured
from pipeline.report.chart_parts import chart_of, error_bars, log_axis
from pipeline.report.chart_rows import Row
from pipeline.report.figures import COLOURS, REFERENCE_COLOUR, Chart, Figure, Key, Panel, View
from pipeline.report.loss_charts import VALUES
from pipeline.report.numbers import low_to_high, significant

TARGET_COLOURS = {
    "q": COLOURS["shared-kv"],
    "k": COLOURS["separate"],
    "v": COLOURS["cross-layer"],
    "q+k+v": REFERENCE_COLOUR,
}
HEIGHT = 300  # pixels


def damage_chart(found: dict[str, Any], metric: str) -> Chart:
    """A picture of KL divergence by layer, from what `pipeline.cli.damage.damage` returns."""
    entries = [
        (layer["layer"], targets, cell["kld_mean"], cell["low"], cell["high"])
        for layer in found["layers"]
        for targets, cell in layer.items()
        if targets != "layer"
    ]
    text = f"metric {metric}, threshold {found['threshold']:g}, {found['text']}, {found['chunks']} chunks"
    return damage_picture(damage_rows(entries), text)


def damage_figure(results: Results) -> Figure:
    """A view a metric and threshold of which a study holds the cells of `surgery inspect --damage`."""
    measured = defaultdict(list)
    for cell in results["cells"]:
        if cell["damage"] and is_measured(cell):
            bounds = cell["kld_mean"], cell["kld_low"], cell["kld_high"]
            measured[cell["metric"], cell["threshold"]].append((int(cell["layers"]), cell["targets"], *bounds))
    views = []
    for (metric, threshold), entries in measured.items():
        rows = damage_rows(entries)
        if rows:
            label = f"Threshold {threshold:g}, {metric}"
            panel = Panel(label, damage_lines(rows, legend=False).properties(height=HEIGHT), f"{label}: KL by layer")
            views.append(View(f"damage-{metric}-{threshold:g}", label, [panel], damage_picture(rows, label)))
    caption = (
        "The loss when that alone is replaced by its leading components and everything else is as in the source; bars are"
        " 95% intervals."
    )
    legend = [Key(targets, colour) for targets, colour in TARGET_COLOURS.items()]
    return Figure("damage", "What one layer alone costs", caption, views, legend)


def damage_rows(entries: Iterable[tuple[int, str, float, float | None, float | None]]) -> list[Row]:
    """Rows of layer, targets, KL divergence and its 95 % interval, as a log axis can show them: what costs nothing is
    left out."""
    drawn = sorted(entry for entry in entries if entry[2] > 0)
    least = min((value for _, _, value, _, _ in drawn), default=0) / 2
    return [
        {
            "layer": layer,
            "targets": "+".join(targets),
            "value": value,
            "low": max(value if low is None else low, least),
            "high": value if high is None else high,
            "KL divergence": significant(value),
            "95% interval": low_to_high(low, high),
        }
        for layer, targets, value, low, high in drawn
    ]


def damage_lines(rows: list[Row], *, legend: bool) -> Chart:
    """KL divergence by layer on a log scale, a line for each of q, k, v and all three, with 95 % intervals."""
    layers = sorted({row["layer"] for row in rows})
    scale = alt.Scale(domain=list(TARGET_COLOURS), range=list(TARGET_COLOURS.values()))
    base = chart_of(rows).encode(
        x=alt.X(
            "layer:Q",
            title="layer",
            axis=alt.Axis(tickCount=10),
            scale=alt.Scale(domain=[layers[0], layers[-1]], padding=12, nice=False),
        ),
        color=alt.Color(
            "targets:N", title="operated on", scale=scale, sort=None, legend=alt.Legend() if legend else None
        ),
    )
    ends = [row[end] for row in rows for end in ("low", "high")]
    tooltip = [
        alt.Tooltip(heading, type="nominal") for heading in ("layer", "targets", "KL divergence", "95% interval")
    ]
    lines = base.encode(y=log_axis(ends, VALUES["kld"])).mark_line(strokeWidth=1.5, point={"size": 30})
    return alt.layer(error_bars(base), lines.encode(tooltip=tooltip))


def damage_picture(rows: list[Row], text: str) -> Chart:
    title = alt.TitleParams("What a layer's projections cost, operated on alone", subtitle=text, anchor="start")
    return damage_lines(rows, legend=True).properties(width=640, height=HEIGHT, title=title)
