"""How far a command is, on stderr: of one step, and of all that it takes."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
from rich.table import Column

from pipeline.cli.output import duration, echo
from pipeline.visible import visible

SECONDS_BETWEEN_PLAIN_LINES = 10.0


class ProgressReport:
    """Progress of one task, as a context manager: a live bar on a terminal, otherwise a plain line every ten seconds.

    Shown from the first update on until the total is reached; from an update with less than before the work is done
    again, as on a further text. `unit` is `bytes` or a plural noun; `update` is a `pipeline.progress.Progress`.
    """

    def __init__(self, label: str, *, unit: str, total: float = 0, steps: "Steps | None" = None) -> None:
        self.label, self.unit, self.done, self.total = visible(label), unit, 0.0, total
        self.finished, self.earlier = 0, (0.0, 0.0)  # of the work before: how often, what share of it here, seconds
        self._steps = steps
        self._done_before: float | None = None  # by an interrupted run that is being resumed
        self._started = self._last_line = self._updated = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressReport":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, amount: float, note: str = "") -> None:
        self.update(self.done + amount, self.total, note)

    def update(self, done: float, total: float, note: str = "") -> None:
        if self._done_before is not None and done < self.done:
            self.finished, self.earlier, self._done_before = self.finished + 1, self.spent(), None
            self._bar = None
        self.done, self.total, self._updated = done, total, time.monotonic()
        if self._done_before is None:
            self._done_before, self._started = done, self._updated
        if sys.stderr.isatty():
            self._bar = self._bar or self._start_bar()
            task, shown = self._bar.task_ids[0], visible(note)
            self._bar.update(task, completed=done, total=total, note=shown, rate=self._rate(), whole=self._whole())
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
            *([TextColumn("{task.fields[whole]}")] if console.width >= 60 else []),
            console=console,
            transient=True,
        )
        bar.add_task(self.label, total=self.total, completed=int(self.done), note="", rate="", whole="")
        bar.start()
        return bar

    def spent(self) -> tuple[float, float]:
        """How often the work has been done here, and the seconds that it took."""
        share = (self.done - (self._done_before or 0)) / self.total if self.total else 0.0
        return self.earlier[0] + share, self.earlier[1] + self._updated - self._started

    def left(self, times: int) -> float:
        """How often the work is still to be done if it is to be done so often."""
        return max(times - self.finished - (self.done / self.total if self.total else 0.0), 0.0)

    def _whole(self) -> str:
        return self._steps.described_left() if self._steps else ""

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
        left += f" {whole}" if (whole := self._whole()) else ""
        return f"{self.label}: {self.done / scale:,.0f} of {self.total / scale:,.0f} {unit}{note and f', {note}'}{left}"


@dataclass(frozen=True)
class Expected:
    """A step: its seconds beside those of other steps, as they were measured, and how often it is done."""

    seconds: float
    times: int = 1


class Steps:
    """Numbers the steps of a command; one whose result is there already is passed over.

    `then` is a last step that shows itself how far it is, and of which nothing is known before.
    """

    def __init__(self, expected: Sequence[Expected], then: str = "") -> None:
        self.expected, self.then = expected, then
        self._begun: list[ProgressReport] = []

    def next(self, label: str, *, unit: str) -> ProgressReport:
        """The progress of the step that follows, such as `step 2 of 3: operating`."""
        label = self._numbered(len(self._begun) + 1, label)
        self._begun.append(ProgressReport(label, unit=unit, steps=self))
        return self._begun[-1]

    @property
    def last(self) -> str:
        """The label of the step `then`."""
        return self._numbered(len(self.expected) + 1, self.then)

    def _numbered(self, number: int, label: str) -> str:
        total = len(self.expected) + bool(self.then)
        return f"step {number} of {total}: {label}" if total > 1 else label

    def described_left(self) -> str:
        """Such as `(all: 9 min)`; empty in the last step."""
        seconds = self.seconds_left()
        return f"({f'until {self.then}' if self.then else 'all'}: {duration(seconds)})" if seconds else ""

    def seconds_left(self) -> float | None:
        """About how long all steps will still take here, at the pace of those that ran; None if this is the last one."""
        begun = [(step, report, *report.spent()) for step, report in zip(self.expected, self._begun, strict=False)]
        ran = [number for number, (_, _, times, _) in enumerate(begun) if times]
        if not ran:
            return None
        pace = sum(begun[i][3] for i in ran) / sum(begun[i][0].seconds * begun[i][2] for i in ran)
        left = [
            0.0 if number < ran[-1] and number not in ran
            else step.seconds * (begun[number][1].left(step.times) if number < len(begun) else step.times)
            for number, step in enumerate(self.expected)
        ]  # fmt: skip
        others = sum(left) - left[ran[-1]]
        return pace * sum(left) if others else None
