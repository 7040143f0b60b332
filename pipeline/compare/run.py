"""The run over a study's cells: what is missing is measured, on this machine or on a cluster."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from native.errors import NativeError
from pipeline.compare.base import base_missing, record_base
from pipeline.compare.cell import Cell, replies_key, text_key
from pipeline.compare.families import families, family_of
from pipeline.compare.ledger import Run
from pipeline.compare.measuring import CellChunk, CellFinished, CellJob, CellProgress, CellReplies, measure_cell
from pipeline.compare.study import Study
from pipeline.errors import SurgeryError


@dataclass
class StudyProgress:
    """Where a run is, in chunks, questions of tasks, and cells of this run.

    best: the least KL divergence of a surgery, of all cells where there is none, and its cell
    question_chunks: for how many chunks' work a question stands
    """

    chunks_total: int
    cells_total: int
    questions_total: int = 0
    chunks_done: int = 0
    questions_done: int = 0
    cells_done: int = 0
    question_chunks: float = 0.0
    doing: str = ""
    best: tuple[float, str] | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """How much of the work is done."""
        total = self.chunks_total + self.questions_total * self.question_chunks
        return (self.chunks_done + self.questions_done * self.question_chunks) / total if total else 1.0


Watch = Callable[[StudyProgress], None]
CellEvent = CellProgress | SurgeryError | NativeError
Runner = Callable[[Iterator[CellJob]], Iterator[tuple[Cell, CellEvent]]]
"""Measures jobs and hands back what happens, the events of several cells mixed or not; an error ends its cell alone."""


def run_here(jobs: Iterator[CellJob]) -> Iterator[tuple[Cell, CellEvent]]:
    """One cell after the other with all processors; every chunk is told at once."""
    for job in jobs:
        try:
            for event in measure_cell(job):
                yield job.cell, event
        except (SurgeryError, NativeError) as error:
            yield job.cell, error


def run_study(study: Study, cells: Sequence[Cell], watch: Watch, runner: Runner = run_here) -> StudyProgress:
    """Measure what is missing of `cells`, each chunk written down as it comes. A cell that fails does not end the run.

    Raises as `Study.quantise` and `record_base` do.
    """
    started = time.perf_counter()
    study.ledger.add_cells({cell: study.key(cell) for cell in cells})
    run = _StudyRun(study, study.unfinished(cells), watch)
    run.prepare()
    if study.tasks:
        for key in {study.key(cell) for cell in cells} - {study.key(cell) for cell in run.waiting}:
            study.tasks.score(study.ledger, key)  # where only what replies come to is computed otherwise now
    for cell, event in runner(run.jobs()):
        if isinstance(event, CellChunk):
            run.add_chunk(cell, event)
        elif isinstance(event, CellReplies):
            run.add_replies(cell, event)
        elif isinstance(event, CellFinished):
            run.finish(cell, event)
        else:
            run.fail(cell, event)
    study.ledger.set_facts({"seconds": study.ledger.facts().get("seconds", 0.0) + time.perf_counter() - started})
    return run.progress


class _StudyRun:
    """The cells of a run that wait to be measured, and how far they are."""

    def __init__(self, study: Study, waiting: Sequence[Cell], watch: Watch) -> None:
        self.study, self.waiting, self.watch = study, waiting, watch
        self.operated = any(cell.plan for cell in waiting)
        self.missing = {cell: study.missing_chunks(cell) for cell in waiting}
        self.questions = {cell: len(study.questions(study.key(cell))) for cell in waiting}
        self.divergences = {
            cell: {text.sha256: list(study.divergences(cell, text)) for text in study.settings.texts}
            for cell in waiting
        }
        self.families_left = Counter(family_of(cell) for cell in waiting)
        base_chunks = sum(len(base_missing(study, text)) for text in study.settings.texts) if waiting else 0
        self.progress = StudyProgress(
            chunks_total=base_chunks + sum(self.missing.values()),
            cells_total=len(waiting),
            questions_total=len(study.questions(study.base_key)) + sum(self.questions.values()),
            question_chunks=study.tasks.tokens_a_question() / study.settings.n_ctx if study.tasks else 0.0,
        )

    def tell(self, doing: str, chunks: int = 0, questions: int = 0) -> None:
        self.progress.doing = doing
        self.progress.chunks_done += chunks
        self.progress.questions_done += questions
        self.watch(self.progress)

    def prepare(self) -> None:
        """Make what all cells share: the source in each quantisation, and its logits."""
        for quant in dict.fromkeys(cell.quant for cell in self.waiting):  # first: a type may ask for what is not there
            if not self.study.quantised(quant).exists():
                self.tell(f"quantising the source to {quant}")
                self.study.quantise(quant)
        if self.waiting:
            self.tell("the source")
            record_base(self.study, lambda: self.tell("the source", 1))
            self.study.ledger.set_facts({"base_key": self.study.base_key})  # results are read by whatever code
        if self.study.tasks:
            self.study.tasks.ask_source(
                self.study.ledger, self.study.base_key, lambda count: self.tell("the source: tasks", questions=count)
            )

    def jobs(self) -> Iterator[CellJob]:
        """The jobs of the cells, each family's operated tensors made when its first job is asked for."""
        for plan, family in families(self.waiting):
            try:
                if plan:
                    self.tell(f"operating: {family[0].label}")
                    self.study.operate(family)
            except (SurgeryError, NativeError) as error:
                for cell in family:
                    self.fail(cell, error)
                continue
            for cell in family:
                run = self.study.ledger.run(self.study.key(cell))
                self.study.ledger.set_run(replace(run, status="running", reason=None))
                yield self.study.job(cell)

    def add_chunk(self, cell: Cell, chunk: CellChunk) -> None:
        key = text_key(self.study.key(cell), chunk.text_sha256)
        self.study.ledger.add_chunk(key, chunk.number, chunk.scores, chunk.seconds)
        self.divergences[cell][chunk.text_sha256].append(float(chunk.scores.kld.mean()))
        self.missing[cell] -= 1
        self.tell(f"{cell.label}: KL {self._divergence(cell):.4f}", 1)

    def add_replies(self, cell: Cell, event: CellReplies) -> None:
        self.study.ledger.add_replies(replies_key(self.study.key(cell)), event.replies)
        self.questions[cell] -= len(event.replies)
        self.tell(f"{cell.label}: tasks", questions=len(event.replies))

    def finish(self, cell: Cell, finished: CellFinished) -> None:
        key, ledger = self.study.key(cell), self.study.ledger
        if self.study.tasks:
            try:
                self.study.tasks.score(ledger, key)
            except SurgeryError as error:
                self.fail(cell, error)
                return
        for text, reason in finished.reasons.items():
            ledger.set_run(Run(text_key(key, text), "stopped" if reason else "done", reason))
        facts = (ledger.run(key).facts or {}) | finished.facts | {"operation": self.study.operation_key(cell)}
        ledger.set_run(Run(key, "done", None, facts))
        divergence = self._divergence(cell)
        if (cell.plan or not self.operated) and (self.progress.best is None or divergence < self.progress.best[0]):
            self.progress.best = divergence, cell.label
        self._close(cell)

    def _divergence(self, cell: Cell) -> float:
        """The mean over the texts that were measured on so far."""
        return float(np.mean([np.mean(values) for values in self.divergences[cell].values() if values]))

    def fail(self, cell: Cell, error: Exception) -> None:
        passing = rf"{re.escape(str(self.study.folder))}/work/[^\s:]*"  # what is gone as soon as the cell is measured
        reason = re.sub(rf"{passing}(: |\b)", lambda found: "" if found[1] else "its file", str(error))
        self.progress.failures.append(f"{cell.label}: {reason}")
        self.study.ledger.set_run(Run(self.study.key(cell), "failed", reason))
        self._close(cell)

    def _close(self, cell: Cell) -> None:
        family = family_of(cell)
        self.progress.cells_done += 1
        self.families_left[family] -= 1
        if not self.families_left[family]:
            self.study.remove_operated([other for other in self.waiting if family_of(other) == family])
        self.tell(cell.label, self.missing[cell], self.questions[cell])
