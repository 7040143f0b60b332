"""The files of a report: the page, and beside it the tables and the pictures."""

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.files.output_file import check_output, complete_or_absent
from pipeline.json_text import json_text, plain
from pipeline.report.answer import answer
from pipeline.report.cells import Results, compared
from pipeline.report.charts import as_png, as_svg
from pipeline.report.figures import Figure
from pipeline.report.page import render_page
from pipeline.report.study_charts import study_figures
from pipeline.report.tables import as_csv, as_markdown
from pipeline.report.task_tables import tasks_as_csv
from pipeline.visible import visible


def check_page(page: Path) -> None:
    """Raise UsageError unless `page` can be written. Only a page's name is taken: what is there is overwritten."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{page}: expected a name that ends in .html")
    check_output(page, force=True)
    for folder in (page.parent / "tables", page.parent / "plots"):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is no folder, but the report needs one of that name; move it, or use -o")


def write_report(results: Results, page: Path) -> dict[str, Any]:
    """Write `page`, and beside it the folders `tables` and `plots`; what was there is overwritten.

    Returns the paths, the answer's sentences, and how many cells have which status. Raises as `check_page` does.
    """
    check_page(page)
    results = readable(plain(results))
    grid = compared(results)
    found, figures = answer(grid), study_figures(results)
    written = {
        "tables": write_tables(results, page.parent / "tables"),
        "plots": write_plots(figures, page.parent / "plots"),
    }
    _write(page, render_page(grid, found, figures).encode())
    states = Counter(cell["status"] for cell in grid["cells"])
    return {"page": str(page), **written, "answer": found.text, "cells": dict(states)}


def write_tables(results: Results, folder: Path) -> list[str]:
    """The cells that are compared as CSV and Markdown, and all results as JSON."""
    folder.mkdir(exist_ok=True)
    grid = compared(results)
    as_json = json_text(results, indent=1) + "\n"
    tables = {"cells.csv": as_csv(grid), "cells.md": as_markdown(grid), "study.json": as_json}
    if results["base"]["tasks"]:
        tables["tasks.csv"] = tasks_as_csv(grid)
    return [_write(folder / name, text.encode()) for name, text in tables.items()]


def write_plots(figures: list[Figure], folder: Path) -> list[str]:
    """Every view of every figure as SVG and as PNG."""
    folder.mkdir(exist_ok=True)
    written = []
    for view in (view for figure in figures for view in figure.views):
        svg = as_svg(view.picture)
        written.append(_write(folder / f"{view.name}.svg", svg.encode()))
        written.append(_write(folder / f"{view.name}.png", as_png(svg)))
    return written


def readable(value: Any) -> Any:
    """`value` with the control characters of every text in it made visible: no page shows them, and no SVG may have them."""
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    return visible(value, keep="\n\t") if isinstance(value, str) else value


def _write(path: Path, content: bytes) -> str:
    with complete_or_absent(path, force=True, size=len(content)) as temporary:
        temporary.write_bytes(content)
    return str(path)
