"""Charts as files. Vega-Altair makes them, vl-convert draws them, without a browser and without network access."""

from pathlib import Path
from typing import Any

from pipeline.extras import require
from pipeline.files.output_file import complete_or_absent
from pipeline.report.chart_style import PICTURE

FORMATS = ("svg", "png")
PNG_SCALE = 2.0  # pixels for each of the chart's units


def require_charts() -> None:
    """Raise SurgeryError when a package that charts and pages need is missing, before anything takes long."""
    for module in ("altair", "vl_convert", "jinja2"):
        require(module, "report", "drawing")


def write_chart(chart: Any, path: Path, *, force: bool) -> None:
    """Write an Altair chart as the picture that the name of `path` says, .svg or .png, complete or not at all.

    Raises UsageError when `path` cannot be written, or exists and `force` is not set.
    """
    svg = as_svg(chart)
    content = as_png(svg) if path.suffix == ".png" else svg.encode()
    with complete_or_absent(path, force=force, size=len(content)) as temporary:
        temporary.write_bytes(content)


def as_svg(chart: Any) -> str:
    """An Altair chart as an SVG file, on white."""
    import vl_convert

    return vl_convert.vegalite_to_svg(chart.to_dict() | {"config": PICTURE})


def as_png(svg: str) -> bytes:
    import vl_convert

    return vl_convert.svg_to_png(svg, scale=PNG_SCALE)
