"""The commands that make a cell's model by hand, and run it as the cell was measured."""

import shlex
from collections.abc import Iterator
from dataclasses import fields

from pipeline.compare.cell import AS_IT_IS, Cell
from pipeline.latent.plan import LatentPlan
from pipeline.operation.plan import Plan

OUTPUT, BETWEEN = "cell.gguf", "between.gguf"


def cell_commands(cell: Cell, model: str, calibration: str | None) -> list[str]:
    """One line a step; `model` and `calibration` are what the study was given. Without a step there is only running."""
    plan = cell.plan
    quantised = cell.quant != AS_IT_IS
    lines: list[list[str]] = []
    if isinstance(plan, Plan):
        lines.append(["operate", model, "-o", OUTPUT, *_plan_options(plan), *_calibration(cell, calibration)])
        lines[-1] += ["--quant", cell.quant] if quantised else []
    elif isinstance(plan, LatentPlan):
        made = BETWEEN if quantised else OUTPUT
        rotary = ["--rotary", str(plan.rotary)] if plan.rotary else []
        lines.append(
            ["latent", model, "-o", made, "--cache", str(plan.cache), *rotary, *_calibration(cell, calibration)]
        )
        lines += [["quantize", BETWEEN, OUTPUT, cell.quant]] if quantised else []
    elif quantised:
        lines.append(["quantize", model, OUTPUT, cell.quant])
    caches = [f"--cache-type-{side}={cell.cache_type}" for side in "kv"] if cell.cache_type != "f16" else []
    lines.append(["run", OUTPUT if lines else model, *caches])
    return [shlex.join(["surgery", *line]) for line in lines]


def _plan_options(plan: Plan) -> Iterator[str]:
    """The options of `surgery operate` that are not at their defaults, and the rank rule."""
    for field in fields(plan):
        value = getattr(plan, field.name)
        if value is not None and (field.name == "threshold" or value != field.default):
            yield f"--{field.name.replace('_', '-')}"
            yield str(value)


def _calibration(cell: Cell, calibration: str | None) -> list[str]:
    return ["--calibration", calibration] if cell.calibrated and calibration else []
