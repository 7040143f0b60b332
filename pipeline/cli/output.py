"""What a command prints: one JSON object or readable tables on stdout, warnings on stderr."""

import sys
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.wording import spoken
from pipeline.json_text import json_text
from pipeline.visible import visible


def counted(number: int, noun: str) -> str:
    """Such as 1 tensor, 2,000 tensors."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.5 h."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def echo(message: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print `message`, which may be a model's or hold names from files: only its line ends and tabs do anything.

    Everything that a command prints goes through here, a table, a progress bar or JSON.
    """
    click.echo(visible(message, keep="\n\t"), nl=nl, err=err)  # noqa: TID251


def perplexity_text(value: float) -> str:
    """A perplexity, however large: a destroyed model's may be beyond what a float holds."""
    if not isfinite(value):
        return "> 1e308"
    return f"{value:{'.4f' if value < 1e7 else '.4e'}}"


def print_json(value: dict[str, Any]) -> None:
    echo(json_text(value, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, dispensable: Sequence[int] = ()) -> None:
    """A table on stdout, whole however narrow the terminal; the first column is left-aligned, the others right.

    A terminal that is too narrow is spared the columns `dispensable`, one after the other, until it fits.
    """
    lines = [[visible(str(cell)) for cell in row] for row in rows]
    console = Console(highlight=False)

    def width(table: Table) -> int:
        return console.measure(table, options=console.options.update(width=10_000)).maximum

    shown, left_out = list(range(len(headings))), list(dispensable) if sys.stdout.isatty() else []
    while width(table := _table(headings, lines, shown)) > console.width and left_out:
        shown.remove(left_out.pop(0))
    console.width = max(console.width, width(table))
    console.print(table)


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], shown: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number in shown:
        table.add_column(headings[number], justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(line[number]) for number in shown))
    return table


def warn(message: str) -> None:
    echo(f"surgery: warning: {visible(spoken(message))}", err=True)
