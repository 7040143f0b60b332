"""Pictures that a command draws into a folder, each as SVG and as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.files.output_file import check_output
from pipeline.report.charts import FORMATS, require_charts, write_chart


def planned_pictures(folder: Path, names: Sequence[str], *, force: bool) -> list[Path]:
    """The files that `draw` will write. Raises before anything takes long if they cannot be written or drawn."""
    require_charts()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--plots {folder}: is a file; name a folder for the pictures")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [folder / f"{name}.{kind}" for name in names for kind in FORMATS]
    for picture in pictures:
        check_output(picture, force=force)
    return pictures


def draw(charts: Mapping[str, Any], folder: Path, *, force: bool) -> None:
    """Write the charts under their names."""
    for name, chart in charts.items():
        for kind in FORMATS:
            write_chart(chart, folder / f"{name}.{kind}", force=force)
