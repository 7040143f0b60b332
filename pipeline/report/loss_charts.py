"""Loss over what was kept: a line a method and variant, a panel a quantisation."""

from collections.abc import Iterable
from dataclasses import dataclass

import altair as alt

from pipeline.report.cells import SETTINGS, Results, different, is_measured, is_operated
from pipeline.report.chart_parts import chart_of, error_bars, log_axis, method_colour, method_keys, points
from pipeline.report.chart_rows import MEASURES, Row, ends, loss_rows, method_order, reference_rows
from pipeline.report.figures import DASHES, REFERENCE_COLOUR, Chart, Figure, Key, Panel, View

AXES = {
    "threshold": "threshold: share of the variance kept",
    "rank": "rank",
    "budget": "budget: share of the numbers stored",
    "cache": "cache: share of the numbers cached",
    "share": "numbers stored, share of the dense matrices'",
}
AXIS_NAMES = {"share": "numbers stored"}
VALUES = {"kld": "KL divergence, nats a token", "ppl": "perplexity"}
CAPTION = (
    "A line a method, a panel a quantisation; bars are 95% intervals, and open circles were stopped early. The grey line"
    " is what the same quantisation loses without surgery, unless that is too little to be seen here."
)
LEAST_REFERENCE = 0.1  # of the least loss drawn: less would squeeze the lines together


def loss_figure(results: Results) -> Figure:
    operated = [cell for cell in results["cells"] if is_operated(cell) and is_measured(cell)]
    axes = [axis for axis in SETTINGS if different(operated, axis)]
    views = [loss_view(results, measure, axis) for axis in (*axes, "share") for measure in MEASURES]
    variants = dashes(row["variant"] for row in loss_rows(results, "kld", "share"))
    lines = [Key(name, dash=" ".join(map(str, dash))) for name, dash in variants.items() if len(variants) > 1]
    legend = [*method_keys(method_order(operated)), *lines]
    return Figure("loss", "What is lost, the less is kept", CAPTION, [view for view in views if view], legend)


def dashes(variants: Iterable[str]) -> dict[str, list[int]]:
    return {variant: DASHES[i % len(DASHES)] for i, variant in enumerate(dict.fromkeys(variants))}


def loss_view(results: Results, measure: str, axis: str) -> View | None:
    rows, references = loss_rows(results, measure, axis), reference_rows(results, measure)
    if not rows:
        return None
    least = LEAST_REFERENCE * min(row["value"] for row in rows)
    references = [row for row in references if row["value"] >= least]
    label = f"{MEASURES[measure]} over {AXIS_NAMES.get(axis, axis)}"
    for_page, for_file = (LossChart(rows, references, measure, axis, legend) for legend in (False, True))
    titles = list(dict.fromkeys(row["panel"] for row in rows))
    panels = [Panel(title, for_page.panel(title), f"{label}, {title}") for title in titles]
    pictures = [for_file.panel(title).properties(title=title, width=250, height=230) for title in titles]
    return View(f"{measure}-over-{axis}", label[0].upper() + label[1:], panels, alt.concat(*pictures, columns=3))


@dataclass(frozen=True)
class LossChart:
    """One measure over one axis; its panels share their scales."""

    rows: list[Row]
    references: list[Row]
    measure: str
    axis: str
    legend: bool

    def panel(self, title: str) -> Chart:
        rows = [row for row in self.rows if row["panel"] == title]
        methods = sorted({row["method"] for row in self.rows})
        operated = chart_of(rows).encode(x=self.x, color=method_colour(methods, legend=self.legend), detail="variant:N")
        alone = chart_of([row for row in self.references if row["panel"] == title]).encode(y=self.y)
        name = alone.mark_text(align="left", baseline="bottom", dx=4, dy=-3, fontSize=11)
        return alt.layer(
            alone.mark_rule(strokeWidth=1.5, color=REFERENCE_COLOUR),
            name.encode(x=alt.value(0), text="text:N"),
            operated.mark_line(strokeWidth=2).encode(y=self.y, strokeDash=self.dash),
            error_bars(operated),
            points(operated.encode(y=self.y), methods),
        )

    @property
    def x(self) -> alt.X:
        axis = alt.Axis(format="%" if self.axis == "share" else "~g", tickCount=5)
        return alt.X("x:Q", title=AXES[self.axis], scale=alt.Scale(zero=False, nice=False, padding=12), axis=axis)

    @property
    def y(self) -> alt.Y:
        return log_axis([*ends(self.rows), *(row["value"] for row in self.references)], VALUES[self.measure])

    @property
    def dash(self) -> alt.StrokeDash:
        variants = dashes(row["variant"] for row in self.rows)
        legend = alt.Legend(title="variant") if self.legend and len(variants) > 1 else None
        scale = alt.Scale(domain=list(variants), range=list(variants.values()))
        return alt.StrokeDash("variant:N", scale=scale, legend=legend)
