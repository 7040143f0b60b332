"""What a figure on the page is: views to choose from, each a row of panels, and one legend for all of them."""

from dataclasses import dataclass, field

import altair as alt

# After Okabe and Ito, so that the colour-blind tell them apart; each has a contrast of 3 to 1 on white and on black.
COLOURS = {
    "shared-kv": "#1F82C0",
    "separate": "#D55E00",
    "cross-layer": "#009E73",
    "latent": "#CC79A7",
    "random": "#9A7200",
    "none": "#767D86",
}
FURTHER_COLOURS = ("#56799A", "#A0522D")
REFERENCE_COLOUR = COLOURS["none"]
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4])
SHAPES = {
    "circle": "M0,-5A5,5 0 1 1 0,5A5,5 0 1 1 0,-5Z",
    "square": "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "triangle-up": "M0,-5L5,4H-5Z",
    "diamond": "M0,-6L5,0L0,6L-5,0Z",
    "cross": "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "triangle-down": "M0,5L5,-4H-5Z",
    "triangle-right": "M5,0L-4,5V-5Z",
    "triangle-left": "M-5,0L4,5V-5Z",
}


Chart = alt.Chart | alt.LayerChart | alt.FacetChart


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a colour, or in the text's colour a dash or a shape of SHAPES."""

    label: str
    colour: str = "currentColor"
    dash: str | None = None
    shape: str | None = None

    @property
    def outline(self) -> str:
        return SHAPES[self.shape or "circle"]


@dataclass(frozen=True)
class Panel:
    """`chart` has no width, title or legend: the page gives it its own."""

    title: str
    chart: Chart
    description: str


@dataclass(frozen=True)
class View:
    """`picture` is all of the view as one chart, for a file. `notes` are lines below, such as what lies on a front."""

    name: str
    label: str
    panels: list[Panel]
    picture: Chart | alt.ConcatChart
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Selector:
    """A choice within a view's charts: `signal` is their parameter, `options` its values, the first one chosen."""

    signal: str
    label: str
    options: list[str]


@dataclass(frozen=True)
class Figure:
    name: str
    heading: str
    caption: str
    views: list[View]
    legend: list[Key] = field(default_factory=list)
    selector: Selector | None = None


def colour_of(method: str, methods: list[str]) -> str:
    """A method's colour, the same in every figure; unknown ones get further colours by their place in `methods`."""
    others = [name for name in methods if name not in COLOURS]
    return COLOURS.get(method) or FURTHER_COLOURS[others.index(method) % len(FURTHER_COLOURS)]
