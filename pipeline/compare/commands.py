"""The commands that make a cell's model by hand, and run it as the cell was measured."""

import shlex
from collections.abc import Iterator

from pipeline.choices import choices_of
from pipeline.compare.cell import AS_IT_IS, Cell
from pipeline.compare.operations import kind_of
from pipeline.protocol import Operation

OUTPUT, BETWEEN = "cell.gguf", "between.gguf"


def cell_commands(cell: Cell, model: str, calibration: str | None) -> list[str]:
    """One line a step; `model` and `calibration` are what the study was given. Without a step there is only running."""
    plan = cell.plan
    quantised = cell.quant != AS_IT_IS
    lines: list[list[str]] = []
    if plan:
        kind = kind_of(plan.method)
        apart = quantised and not kind.quantises
        lines.append([kind.command, model, "-o", BETWEEN if apart else OUTPUT, *_options(plan)])
        lines[-1] += _calibration(cell, calibration)
        lines[-1] += ["--quant", cell.quant] if quantised and kind.quantises else []
        lines += [["quantize", BETWEEN, OUTPUT, cell.quant]] if apart else []
    elif quantised:
        lines.append(["quantize", model, OUTPUT, cell.quant])
    caches = [f"--cache-type-{side}={cell.cache_type}" for side in "kv"] if cell.cache_type != "f16" else []
    lines.append(["run", OUTPUT if lines else model, *caches])
    return [shlex.join(["surgery", *line]) for line in lines]


def _options(plan: Operation) -> Iterator[str]:
    """The options for what is not at its default; what is None is what another option stands in the place of."""
    for name, (_, default) in choices_of(type(plan)).items():
        if (value := getattr(plan, name)) not in (default, None):
            yield f"--{name.replace('_', '-')}"
            yield str(value)


def _calibration(cell: Cell, calibration: str | None) -> list[str]:
    return ["--calibration", calibration] if cell.calibrated and calibration else []
