"""What a command prints: one JSON object or readable tables on stdout, progress and warnings on stderr."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

SECONDS_BETWEEN_PLAIN_LINES = 10.0


def print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout; its first column is text, the others are right-aligned. Never cut off when piped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


def warn(message: str) -> None:
    click.echo(f"surgery: warning: {message}", err=True)


class ProgressReport:
    """Progress of one task, as a context manager: a live bar on a terminal, otherwise a plain line every ten seconds.

    `unit` is `bytes` or a plural noun; `total` may become known later, by `set_total`.
    """

    def __init__(self, label: str, *, unit: str, total: float | None = None) -> None:
        self.label, self.unit, self.total = label, unit, total
        self.done = 0.0
        self.note = ""
        self.started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "ProgressReport":
        if sys.stderr.isatty():
            columns = (
                (DownloadColumn(), TransferSpeedColumn())
                if self.unit == "bytes"
                else (MofNCompleteColumn(), TextColumn(self.unit))
            )
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                *columns,
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self.label, total=self.total, note="")
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def set_total(self, total: float) -> None:
        self.total = total
        self.advance(0)

    def advance_to(self, done: float, total: float) -> None:
        self.total = total
        self.advance(done - self.done)

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, note=self.note)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = time.monotonic()
            click.echo(self._plain_line(), err=True)

    def _plain_line(self) -> str:
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        seconds = time.monotonic() - self.started
        left = f", {seconds * (self.total - self.done) / self.done:,.0f} s left" if self.total and self.done else ""
        of = f" of {self.total / scale:,.0f}" if self.total else ""
        note = f", {self.note}" if self.note else ""
        return f"{self.label}: {self.done / scale:,.0f}{of} {unit}{note}{left}"
