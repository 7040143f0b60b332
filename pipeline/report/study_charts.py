"""The figures of a study: loss over what was kept, loss over size, ranks by layer."""

import math
from collections import Counter
from dataclasses import dataclass

import altair as alt

from pipeline.report.cells import SIZES, Results, Size, compared, is_measured, quantisation
from pipeline.report.chart_parts import (
    chart_of,
    error_bars,
    log_axis,
    method_colour,
    method_keys,
    points,
    shape_scale,
)
from pipeline.report.chart_rows import Row, ends, method_order, rank_rows, size_rows
from pipeline.report.damage_chart import damage_figure
from pipeline.report.figures import REFERENCE_COLOUR, Chart, Figure, Key, Panel, Selector, View
from pipeline.report.loss_charts import VALUES, loss_figure
from pipeline.report.passkey_chart import passkey_figure
from pipeline.report.subspace_figures import subspace_figures

SIZE_CAPTION = (
    "Every measured combination; the line joins those that nothing of at most their size beats. The dashes are the"
    " source, which loses nothing."
)
MOST_LAYER_LABELS = 10
GROUP_HEIGHT = 44  # pixels
RANK_LABELS = [0, 0.25, 0.5, 0.75, 1]


def study_figures(results: Results) -> list[Figure]:
    """Those that have anything to show."""
    grid = compared(results)
    figures = [loss_figure(grid), size_figure(grid), passkey_figure(grid), ranks_figure(grid)]
    figures += [*subspace_figures(results), damage_figure(results)]
    return [figure for figure in figures if figure.views]


def size_figure(results: Results) -> Figure:
    cells = [cell for cell in results["cells"] if is_measured(cell)]
    shapes = shape_scale(list(dict.fromkeys(map(quantisation, cells))))
    views = [size_view(size_rows(results, size), source_size(results, size), size, shapes) for size in SIZES]
    return Figure(
        "size",
        "What is lost, the smaller it is",
        SIZE_CAPTION,
        [view for view in views if view],
        [
            *method_keys(method_order(cells)),
            *(Key(quant, shape=shape) for quant, shape in shapes.items() if len(shapes) > 1),
        ],
    )


def source_size(results: Results, size: Size) -> float | None:
    """Of the source, in the size's unit."""
    count = results["base"].get(size.key)
    return count / size.per_unit if count else None


def size_view(rows: list[Row], source: float | None, size: Size, shapes: dict[str, str]) -> View | None:
    differs = len({row["x"] for row in rows}) > 1
    if not rows or not (differs or size.front == "file"):
        return None
    for_page, for_file = (SizeChart(rows, source, size, shapes, legend).layers() for legend in (False, True))
    front = sorted((row for row in rows if row["front"]), key=lambda row: float(row["x"]))
    return View(
        f"kld-over-{size.front}",
        size.label[0].upper() + size.label[1:],
        [Panel("", for_page.properties(height=340), f"KL divergence over {size.label}")],
        for_file.properties(width=620, height=340),
        [f"{row['combination']}: {row['size']}, {row['KL divergence']} nats a token" for row in front],
    )


@dataclass(frozen=True)
class SizeChart:
    """KL divergence over one size, with its Pareto front and the size of the source; `shapes` are the quantisations'."""

    rows: list[Row]
    source: float | None
    size: Size
    shapes: dict[str, str]
    legend: bool

    def layers(self) -> Chart:
        methods = sorted({row["method"] for row in self.rows})
        y = log_axis(ends(self.rows), VALUES["kld"])
        cells = chart_of(self.rows).encode(x=self.x, color=method_colour(methods, legend=self.legend))
        front = chart_of([row for row in self.rows if row["front"]]).encode(x=self.x, y=y)
        return alt.layer(
            *(self.source_line() if self.source else ()),
            front.mark_line(interpolate="step-after", strokeWidth=1.5, color=REFERENCE_COLOUR),
            error_bars(cells),
            points(cells.encode(y=y), methods).encode(shape=self.shape),
        )

    def source_line(self) -> tuple[alt.Chart, alt.Chart]:
        """The source has no place on a log axis of losses, as it loses nothing."""
        source = chart_of([{"x": self.source, "text": "source"}]).encode(x=self.x)
        named = source.mark_text(baseline="bottom", dy=-3, fontSize=11).encode(y=alt.value(0), text="text:N")
        return source.mark_rule(strokeDash=[3, 3], color=REFERENCE_COLOUR), named

    @property
    def x(self) -> alt.X:
        title = f"{self.size.label}, {self.size.unit}"
        return alt.X("x:Q", title=title, scale=alt.Scale(zero=False, padding=16), axis=alt.Axis(tickCount=6))

    @property
    def shape(self) -> alt.Shape:
        scale = alt.Scale(domain=list(self.shapes), range=list(self.shapes.values()))
        return alt.Shape("quantisation:N", scale=scale, legend=alt.Legend() if self.legend else None)


def ranks_figure(results: Results) -> Figure:
    rows = rank_rows(results)
    caption = "How many components every layer keeps, as a share of all that there are."
    if not rows:
        return Figure("ranks", "", caption, [])
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    chart = ranks_chart(rows, operations[0])
    picture = chart.properties(width=700, title=operations[0])
    selector = Selector("operation", "Operation", operations)
    view = View("ranks", "Ranks", [Panel("", chart, "Rank by layer and group")], picture)
    return Figure("ranks", "Where the ranks go", caption, [view], selector=selector)


def ranks_chart(rows: list[Row], chosen: str) -> alt.Chart:
    """A heat map of the operation that the parameter `operation` names, `chosen` at first."""
    layers = sorted({row["layer"] for row in rows})
    groups = Counter(operation for operation, _ in {(row["operation"], row["group"]) for row in rows})
    labelled = layers[:: math.ceil(len(layers) / MOST_LAYER_LABELS)]
    colour = alt.Color(
        "share of the full rank:Q",
        scale=alt.Scale(scheme="viridis", domain=[0, 1]),
        legend=alt.Legend(orient="bottom", format="%", title="rank, share of the full rank", values=RANK_LABELS),
    )
    tooltip = ["layer", "group", "rank", "full rank", "variance kept"]
    return (
        chart_of(rows)
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(values=labelled, labelAngle=0)),
            y=alt.Y("group:N", title=None, sort=None),
            color=colour,
            tooltip=[alt.Tooltip(heading, type="nominal") for heading in tooltip],
        )
        .properties(height=GROUP_HEIGHT * max(groups.values()))
        .transform_filter("datum.operation == operation")
        .add_params(alt.param(name="operation", value=chosen))
    )
