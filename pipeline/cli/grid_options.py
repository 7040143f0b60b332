"""The options of a grid, made of what `Grid` and the plans declare; and the grids that they choose."""

from collections.abc import Callable
from dataclasses import Field, fields, replace
from typing import Any

import click

from pipeline.choices import CHOICE
from pipeline.cli.choices import choice_type, given_choices
from pipeline.cli.options import list_option
from pipeline.cli.wording import spoken
from pipeline.compare.grid import HELP, PRESETS, WHOSE, CellChoices, Grid, idle_choice, load_grids
from pipeline.errors import UsageError
from pipeline.operation.plan import RANK_RULES


def grid_options(command: Any) -> Any:
    """An option for every choice of cells: a list, but for the layers."""
    for field in reversed(fields(CellChoices)):
        command = _option(field)(command)
    return command


def _option(field: Field[Any]) -> Callable[[Any], Any]:
    choice, name = field.metadata[CHOICE], f"--{field.name.replace('_', '-')}"
    known = f"Any of {', '.join(choice.names)}." if choice.names else ""
    default: Any = field.default if isinstance(field.default, str) else ",".join(map(str, field.default))  # type: ignore[arg-type]
    text = spoken(f"{known}{field.metadata[HELP]}") + (f"  [default: {default}]" if default else "")
    if field.name == "layers":
        return click.option(name, help=text)
    return list_option(name, choice_type(choice), text)


def chosen_grids(options: dict[str, Any]) -> list[Grid]:
    """The grids of a preset, a file or neither, with what the options say put in their place."""
    if options["preset"] and options["plan_file"]:
        raise UsageError("give one of --preset and --plan; options overrule either")
    given = given_choices(options, [field.name for field in fields(Grid)])
    grids = load_grids(options["plan_file"]) if options["plan_file"] else PRESETS[options["preset"] or "quick"]
    if not (options["plan_file"] or options["preset"]):
        given = {"methods": Grid.methods, **given}
    if "methods" in given:
        grids = [replace(grid, methods=given["methods"]) for grid in grids]
    for name in given:
        if not any(grid.uses(name) for grid in grids):
            raise idle_choice(name)
    rules = {f"{rule}s": () for rule in RANK_RULES} if given.keys() & {f"{rule}s" for rule in RANK_RULES} else {}
    return [_overruled(grid, {**rules, **given}) for grid in grids]


def _overruled(grid: Grid, given: dict[str, Any]) -> Grid:
    """The grid with the choices `given`, as far as it uses them, and without those that it does not use any more."""
    idle = {name: getattr(Grid, name) for name in WHOSE if not grid.uses(name)}
    return replace(grid, **{**given, **idle})
