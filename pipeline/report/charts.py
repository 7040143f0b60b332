"""Charts as files. Vega-Altair makes them, vl-convert draws them, without a browser and without network access."""

from pathlib import Path
from typing import Any

from pipeline.extras import require
from pipeline.output_file import complete_or_absent

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
    kind = path.suffix.removeprefix(".")
    with complete_or_absent(path, force=force) as temporary:
        chart.save(str(temporary), format=kind, **({"scale_factor": PNG_SCALE} if kind == "png" else {}))
