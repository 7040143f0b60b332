"""Pieces that several figures share: axes, colours, points."""

import math
from typing import Any

import altair as alt

from pipeline.report.chart_rows import TOOLTIP, Row
from pipeline.report.figures import SHAPES, Key, colour_of

METHOD_NAMES = {"none": "quantised alone"}
MOST_TICKS = 7
TICK_STEPS = ((1, 2, 5), (1, 3), (1,))


def chart_of(rows: list[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def method_scale(methods: list[str]) -> alt.Scale:
    return alt.Scale(domain=methods, range=[colour_of(method, methods) for method in methods])


def method_colour(methods: list[str], *, legend: bool) -> alt.Color:
    named = f"datum.label == 'none' ? '{METHOD_NAMES['none']}' : datum.label"
    shown = alt.Legend(title="method", labelExpr=named) if legend else None
    return alt.Color("method:N", scale=method_scale(methods), legend=shown)


def method_keys(methods: list[str]) -> list[Key]:
    return [Key(METHOD_NAMES.get(method, method), colour_of(method, methods)) for method in methods]


def shape_scale(names: list[str]) -> dict[str, str]:
    shapes = list(SHAPES)
    return {name: shapes[i % len(shapes)] for i, name in enumerate(names)}


def log_axis(values: list[float], title: str) -> alt.Y:
    """The axis of the field `value` on a log scale that holds all of `values`, which are positive."""
    domain, ticks = log_scale(values)
    scale = alt.Scale(type="log", domain=domain, nice=False)
    return alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, format="~g"))


def log_scale(values: list[float]) -> tuple[list[float], list[float]]:
    """A domain around `values`, and its ticks: powers of ten, and what is between them while that is few."""
    domain = [min(values) / 1.25, max(values) * 1.25]
    decades = range(math.floor(math.log10(domain[0])), math.ceil(math.log10(domain[1])) + 1)
    ticks: list[float] = []
    for steps in TICK_STEPS:
        all_ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in all_ticks if domain[0] <= tick <= domain[1]]
        if len(ticks) <= MOST_TICKS:
            break
    return domain, ticks


def error_bars(base: alt.Chart) -> alt.Chart:
    return base.mark_rule(strokeWidth=1.5, clip=True).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))


def points(base: alt.Chart, methods: list[str]) -> alt.Chart:
    """Points with tooltips: filled when the cell is complete, open when it was stopped early."""
    filled: Any = alt.when("datum.complete").then(alt.value(1)).otherwise(alt.value(0))
    return base.mark_point(size=55, strokeWidth=1.5).encode(
        fill=alt.Fill("method:N", scale=method_scale(methods), legend=None),
        fillOpacity=filled,
        tooltip=[alt.Tooltip(heading, type="nominal") for heading in TOOLTIP],
    )
