"""The options of a grid, made of what `Grid` and the plans declare."""

from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import click

from pipeline.choices import CHOICE
from pipeline.cli.choices import choice_type
from pipeline.cli.options import list_option
from pipeline.cli.wording import spoken
from pipeline.compare.grid import HELP, CellChoices


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
