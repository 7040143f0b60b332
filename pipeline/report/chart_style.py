"""How charts look: Vega-Lite configurations for light and dark ground, with the page's colours."""

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Helvetica, Arial, sans-serif"


def chart_config(
    *, ink: str, muted: str, line: str, ground: str | None, diverging: tuple[str, str, str]
) -> dict[str, Any]:
    """`ink` is the colour of titles, `muted` of labels, `line` of grids; `ground` None is transparent.

    `diverging`: below, at and above what is expected.
    """
    axis = {"domain": False, "grid": True, "gridColor": line, "tickColor": line, "labelColor": muted}
    return {
        "font": FONT,
        "background": ground,
        "view": {"stroke": None},
        "axis": axis | {"titleColor": muted, "titleFontWeight": "normal", "titleFontSize": 12, "labelFontSize": 11},
        "axisX": {"titlePadding": 8},
        "axisBand": {"grid": False},
        "legend": {"labelColor": ink, "titleColor": muted, "titleFontWeight": "normal", "titleFontSize": 12},
        "title": {"color": ink, "anchor": "start", "fontSize": 13, "fontWeight": 600},
        "text": {"color": muted},
        "point": {"opacity": 1},
        "range": {"diverging": list(diverging)},
    }


ON_WHITE = ("#2166ac", "#ffffff", "#b2182b")
LIGHT = chart_config(ink="#1b1f24", muted="#57606a", line="#e3e6ea", ground=None, diverging=ON_WHITE)
DARK = chart_config(
    ink="#e6e9ed", muted="#9aa4af", line="#2d343c", ground=None, diverging=("#4f9be0", "#14181d", "#ee6a5f")
)
PICTURE = chart_config(ink="#1b1f24", muted="#57606a", line="#e3e6ea", ground="#ffffff", diverging=ON_WHITE)
