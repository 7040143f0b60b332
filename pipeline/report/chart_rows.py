"""A study's cells as the rows that charts draw: plain values under names that are also the tooltips' headings."""

from typing import Any

from pipeline.projection import shown_name
from pipeline.report.cells import (
    METHODS,
    Cell,
    Results,
    Size,
    different,
    is_measured,
    is_operated,
    name,
    quantisation,
    setting,
)
from pipeline.report.numbers import NOTHING, low_to_high, perplexity, significant
from pipeline.report.tables import status

Row = dict[str, Any]

BELOW = 1e-12  # what a log axis has in the place of zero and less
LARGEST_DRAWN = 1e300  # perplexities beyond have no place on an axis of floats
MEASURES = {"kld": "KL divergence", "ppl": "perplexity"}
TOOLTIP = ["combination", "KL divergence", "95% interval", "perplexity", "size", "status"]
VARIANT = {
    "targets": "",
    "metric": "",
    "mean": "mean ",
    "layers": "layers ",
    "group_layers": "shared by ",
    "outtype": "",
    "seed": "seed ",
}


def method_order(cells: list[Cell]) -> list[str]:
    found = different(cells, "method")
    return [m for m in METHODS if m in found] + [m for m in found if m not in METHODS]


def variants(cells: list[Cell]) -> dict[int, str]:
    """What distinguishes the lines of one method, by the cells' ids: the choices that vary in the study."""
    operated = [cell for cell in cells if is_operated(cell)]
    varying = [key for key in VARIANT if len(different(operated, key)) > 1]
    return {
        id(cell): ", ".join(f"{VARIANT[key]}{cell[key]}" for key in varying if cell[key] is not None) for cell in cells
    }


def panel_title(cell: Cell, cells: list[Cell]) -> str:
    return quantisation(cell) + (f", cache {cell['cache_type']}" if len(different(cells, "cache_type")) > 1 else "")


def cell_row(cell: Cell, size: str = "") -> Row:
    """What a tooltip says of a cell, and its method."""
    return {
        "method": cell["method"],
        "combination": name(cell),
        "KL divergence": significant(cell["kld_mean"]),
        "95% interval": low_to_high(cell["kld_low"], cell["kld_high"]),
        "perplexity": perplexity(cell),
        "size": size or NOTHING,
        "status": status(cell),
        "complete": cell["status"] == "done",
    }


def bounds(cell: Cell, measure: str) -> tuple[float, float, float] | None:
    """A measure with its 95% interval, as a log axis can show it: above BELOW; None unless positive and finite."""
    if measure == "kld":
        value, low, high = cell["kld_mean"], cell["kld_low"], cell["kld_high"]
    else:
        value, low, high = cell["ppl"], cell["ppl_low"], cell["ppl_high"]
    if value is None or not 0 < value < LARGEST_DRAWN:
        return None
    return value, value if low is None else max(low, BELOW), value if high is None else high


def ends(rows: list[Row]) -> list[float]:
    """What an axis must hold of the rows' values and intervals; what reaches down to zero is cut off."""
    return [row[end] for row in rows for end in ("value", "low", "high") if row[end] > BELOW]


def loss_rows(results: Results, measure: str, axis: str) -> list[Row]:
    """A row for every measured cell that was operated on and has a place on `axis`; `panel` is its small multiple.

    `axis` is one of SETTINGS, or `share` (numbers stored over the dense matrices'). `value`, `low` and
    `high` are in the measure's unit; `x` in the axis'.
    """
    cells = results["cells"]
    variant = variants(cells)
    rows = []
    for cell in cells:
        x, drawn = place(cell, axis), bounds(cell, measure)
        if is_operated(cell) and is_measured(cell) and x is not None and drawn:
            value, low, high = drawn
            place_of_cell = {"x": x, "value": value, "low": low, "high": high}
            group = {"panel": panel_title(cell, cells), "variant": variant[id(cell)]}
            rows.append(cell_row(cell, setting(cell)) | place_of_cell | group)
    return rows


def place(cell: Cell, axis: str) -> float | None:
    if axis == "share":
        return cell["factors"] / cell["dense"] if cell["factors"] and cell["dense"] else None
    value: float | None = cell[axis]
    return value


def reference_rows(results: Results, measure: str) -> list[Row]:
    """What quantisation alone loses, a row a panel; and for perplexity what the source has, a row for all."""
    cells = results["cells"]
    rows = []
    for cell in cells:
        drawn = bounds(cell, measure)
        if not is_operated(cell) and is_measured(cell) and drawn:
            text = "without surgery" if cell["quant"] == "source" else "quantised alone"
            rows.append(cell_row(cell) | {"value": drawn[0], "panel": panel_title(cell, cells), "text": text})
    return rows


def size_rows(results: Results, size: Size) -> list[Row]:
    """A row for every measured cell of known size that loses anything; `front` marks those on the Pareto front."""
    rows = []
    for cell in results["cells"]:
        drawn, count = bounds(cell, "kld"), cell[size.key]
        if is_measured(cell) and count is not None and drawn:
            value, low, high = drawn
            place_of_cell = {"x": count / size.per_unit, "value": value, "low": low, "high": high}
            group = {"quantisation": quantisation(cell), "front": size.front in (cell["pareto"] or ())}
            rows.append(cell_row(cell, size.text(count)) | place_of_cell | group)
    return rows


def rank_rows(results: Results) -> list[Row]:
    """A row for every layer and group of every operation with ranks, which do not depend on the quantisation.

    Layers that share components have the same rank, one row each.
    """
    variant = variants(results["cells"])
    operations: dict[str, list[Row]] = {}
    for cell in results["cells"]:
        operation = " ".join(filter(None, (cell["method"], setting(cell), variant[id(cell)])))
        if cell["ranks"] and operation not in operations:
            operations[operation] = [
                rank_row(entry, operation, layer) for entry in cell["ranks"] for layer in entry["layers"]
            ]
    return [row for rows in operations.values() for row in rows]


def rank_row(entry: dict[str, Any], operation: str, layer: int) -> Row:
    explained = entry["explained"]
    return {
        "operation": operation,
        "layer": layer,
        "group": shown_name(entry["group"]),
        "rank": entry["rank"],
        "full rank": entry["full_rank"],
        "share of the full rank": entry["rank"] / entry["full_rank"],
        "variance kept": f"{explained:.4f}" if explained is not None else NOTHING,
    }
