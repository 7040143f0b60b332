"""Cells whose operations come from one decomposition, and are made together."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby

from pipeline.compare.cell import Cell, effective_plan
from pipeline.compare.operations import written_operation


def family_of(cell: Cell) -> str:
    """A name for all cells whose operations come from one decomposition; empty for the source's own."""
    plan = effective_plan(cell.plan)
    return json.dumps(written_operation(plan.family()), sort_keys=True) if plan else ""


def families(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Cells family by family, the source's own first."""
    for family, members in groupby(sorted(cells, key=family_of), key=family_of):
        yield family, list(members)
