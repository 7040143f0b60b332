"""Heat maps of the numbers that models found in long texts, by depth and place."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from pipeline.report.cells import Results, name
from pipeline.report.chart_parts import chart_of
from pipeline.report.chart_rows import Row
from pipeline.report.figures import Figure, Panel, View

ROW_HEIGHT, WIDTH = 34, 300  # pixels
DARK_BELOW = 0.6  # shares whose colour is too dark for black
CAPTION = (
    "Numbers hidden in a text of so many tokens, after so much of it, and the share that was found: every token of the"
    " number is the likeliest. Point at a field for its 95% interval."
)


def passkey_rows(model: str, shares: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each of a model's `PasskeyShare`s, as JSON has them."""
    return [
        {
            "model": model,
            "kind": kind(share["needles"]),
            "tokens": f"{share['depth']:,}",
            "place": f"{share['place']:.0%}",
            "share": share["found"],
            "found": f"{share['found']:.0%}",
            "of": f"{share['items']:,}",
            "95% interval": f"{share['low']:.0%} to {share['high']:.0%}",
        }
        for share in shares
    ]


def kind(needles: int) -> str:
    return "a number alone" if needles == 1 else f"one of {needles} numbers"


def passkey_panel(rows: list[Row]) -> alt.LayerChart:
    """The heat map of rows of one model and one kind."""
    fields = chart_of(rows).encode(
        x=alt.X("place:O", title="after so much of the text", sort=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("tokens:O", title="tokens", sort=None),
        tooltip=[
            alt.Tooltip(heading, type="nominal") for heading in ("tokens", "place", "found", "95% interval", "of")
        ],
    )
    colour = alt.Color("share:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=None)
    ink: Any = alt.when(f"datum.share < {DARK_BELOW}").then(alt.value("white")).otherwise(alt.value("black"))
    drawn = alt.layer(fields.mark_rect().encode(color=colour), fields.mark_text().encode(text="found:N", color=ink))
    return drawn.properties(height=ROW_HEIGHT * len({row["tokens"] for row in rows}))


def passkey_chart(rows: list[Row]) -> alt.ConcatChart:
    """All heat maps of `rows` as one picture, a line a model."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    panels = [
        passkey_panel(mine).properties(width=WIDTH, title=f"{model}: {which}")
        for model in dict.fromkeys(row["model"] for row in rows)
        for which in kinds
        if (mine := [row for row in rows if (row["model"], row["kind"]) == (model, which)])
    ]
    return alt.concat(*panels, columns=len(kinds))


def passkey_figure(results: Results) -> Figure:
    """A view a number of needles: the source, and every cell that was asked."""
    asked = [("the source", results["base"]), *((name(cell), cell) for cell in results["cells"])]
    rows = [row for called, model in asked for row in passkey_rows(called, model["passkeys"])]
    views = []
    for number, which in enumerate(dict.fromkeys(row["kind"] for row in rows), 1):
        mine = [row for row in rows if row["kind"] == which]
        panels = [
            Panel(called, passkey_panel(its), f"Share of numbers that {called} found, by depth and place")
            for called in dict.fromkeys(row["model"] for row in mine)
            if (its := [row for row in mine if row["model"] == called])
        ]
        label = which[0].upper() + which[1:]
        views.append(View(f"passkeys-{number}", label, panels, passkey_chart(mine)))
    return Figure("passkeys", "What is found in long texts", CAPTION, views)
