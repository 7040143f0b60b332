"""A study's progress: one live display on a terminal, otherwise a plain line for each cell and every ten seconds."""

import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.cli.output import counted, echo
from pipeline.cli.progress_report import SECONDS_BETWEEN_PLAIN_LINES
from pipeline.compare.run import StudyProgress


class StudyDisplay:
    """A context manager; `watch` is a `pipeline.compare.run.Watch`."""

    def __init__(self, label: str = "comparing") -> None:
        self._label = label
        self._started = self._last_line = time.monotonic()
        self._cells_told = 0
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn(label), BarColumn(), TextColumn("{task.description}"),
            TimeElapsedColumn(), TextColumn("so far,"), TimeRemainingColumn(), TextColumn("left"),
        )  # fmt: skip

    def __enter__(self) -> "StudyDisplay":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def watch(self, progress: StudyProgress) -> None:
        if sys.stderr.isatty():
            self._show(progress)
        else:
            self._tell(progress)

    def _show(self, progress: StudyProgress) -> None:
        if self._live is None:
            self._bar.add_task("", total=1.0)
            self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)
            self._live.start()
        self._bar.update(self._bar.task_ids[0], completed=progress.share, description=_counts(progress, "/"))
        lines = [f"  {_cells(progress)}", f"  now   {progress.doing}", f"  best  {_best(progress)}"]
        self._live.update(Group(self._bar, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)))

    def _tell(self, progress: StudyProgress) -> None:
        now = time.monotonic()
        finished = progress.cells_done > self._cells_told
        if finished or now - self._last_line > SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line, self._cells_told = now, progress.cells_done
            share = progress.share
            left = f", {(1 - share) / share * (now - self._started):,.0f} s left" if share else ""
            counts = _counts(progress, " of ")
            echo(
                f"{self._label}: {_cells(progress)}, {counts}{left}; {progress.doing}; best {_best(progress)}", err=True
            )


def _counts(progress: StudyProgress, of: str) -> str:
    counts = [f"{progress.chunks_done}{of}{counted(progress.chunks_total, 'chunk')}"]
    if progress.questions_total:
        counts.append(f"{progress.questions_done}{of}{counted(progress.questions_total, 'question')}")
    return ", ".join(counts)


def _cells(progress: StudyProgress) -> str:
    left = progress.cells_total - progress.cells_done
    failed = f", {len(progress.failures)} failed" if progress.failures else ""
    return f"{counted(progress.cells_done, 'cell')} done, {left} left{failed}"


def _best(progress: StudyProgress) -> str:
    return f"KL {progress.best[0]:.4f} of {progress.best[1]}" if progress.best else "unknown yet"
