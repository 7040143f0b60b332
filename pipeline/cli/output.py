"""What a command prints: one JSON object or readable tables on stdout, progress and warnings on stderr."""

import sys
import time
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.wording import spoken
from pipeline.json_text import json_text
from pipeline.visible import visible

SECONDS_BETWEEN_PLAIN_LINES = 10.0


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


class ProgressReport:
    """Progress of one task, as a context manager: a live bar on a terminal, otherwise a plain line every ten seconds.

    Shown from the first update on until the total is reached. `unit` is `bytes` or a plural noun; `update` is a
    `pipeline.progress.Progress`.
    """

    def __init__(self, label: str, *, unit: str, total: float = 0) -> None:
        self.label, self.unit, self.done, self.total = visible(label), unit, 0.0, total
        self._done_before: float | None = None  # by an interrupted run that is being resumed
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressReport":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, amount: float, note: str = "") -> None:
        self.update(self.done + amount, self.total, note)

    def update(self, done: float, total: float, note: str = "") -> None:
        self.done, self.total = done, total
        if self._done_before is None:
            self._done_before, self._started = done, time.monotonic()
        if sys.stderr.isatty():
            self._bar = self._bar or self._start_bar()
            task, shown = self._bar.task_ids[0], visible(note)
            self._bar.update(task, completed=done, total=total, note=shown, rate=self._rate())
            if done >= total:
                self._bar.stop()
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = time.monotonic()
            echo(self._plain_line(visible(note)), err=True)

    def _start_bar(self) -> Progress:
        """The bar; on a narrow terminal note, bar and label give way, and never the time that is left."""
        console = Console(stderr=True)
        third, wide = console.width // 3, console.width >= 100

        def shortened(what: str) -> TextColumn:
            yielding = Column(no_wrap=True, overflow="ellipsis", max_width=third)
            return TextColumn(what, markup=False, table_column=yielding)

        counted = (MofNCompleteColumn(), TextColumn(self._noun()))
        bar = Progress(
            shortened("{task.description}"),
            *([BarColumn(min(40, console.width // 4))] if wide else []),
            *((DownloadColumn(), TransferSpeedColumn()) if self.unit == "bytes" else counted),
            *([shortened("{task.fields[rate]}  {task.fields[note]}")] if wide else []),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        bar.add_task(self.label, total=self.total, completed=int(self.done), note="", rate="")
        bar.start()
        return bar

    def _speed(self) -> float:
        """Units a second in this run."""
        return (self.done - (self._done_before or 0)) / max(time.monotonic() - self._started, 1e-6)

    def _rate(self) -> str:
        speed = self._speed()
        return f"{speed:,.1f}/s" if speed and self.unit != "bytes" else ""

    def _noun(self) -> str:
        return self.unit.removesuffix("s") if self.total == 1 else self.unit

    def _plain_line(self, note: str) -> str:
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self._noun())
        speed = self._speed()
        left = f", {(self.total - self.done) / speed:,.0f} s left" if speed else ""
        return f"{self.label}: {self.done / scale:,.0f} of {self.total / scale:,.0f} {unit}{note and f', {note}'}{left}"


class Steps:
    """Numbers the progress of a command that has `total` steps; one whose result is there already is passed over."""

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, 0

    def next(self, label: str, *, unit: str) -> ProgressReport:
        """The progress of the step that follows, such as `step 2 of 3: operating`."""
        self.begun += 1
        return ProgressReport(f"step {self.begun} of {self.total}: {label}" if self.total > 1 else label, unit=unit)
