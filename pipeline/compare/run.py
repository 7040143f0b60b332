"""The run over a study's cells: what is missing is measured, on this machine or on a cluster."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from native.errors import NativeError
from native.measure import MeasuredChunk
from pipeline.compare.cell import Cell
from pipeline.compare.ledger import Run
from pipeline.compare.measuring import CellFinished, CellJob, measure_cell
from pipeline.compare.study import Study, families, family_of
from pipeline.errors import SurgeryError


@dataclass
class StudyProgress:
    """Where a run is, in chunks and cells of this run. `best`: the least KL divergence of a surgery, and its cell."""

    chunks_total: int
    cells_total: int
    chunks_done: int = 0
    cells_done: int = 0
    doing: str = ""
    best: tuple[float, str] | None = None
    failures: list[str] = field(default_factory=list)


Watch = Callable[[StudyProgress], None]
CellEvent = MeasuredChunk | CellFinished | SurgeryError | NativeError
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
    """Measure what is missing of `cells`, each chunk written down as it comes. A cell that fails does not end the run."""
    study.ledger.add_cells({cell: study.key(cell) for cell in cells})
    waiting = study.unfinished(cells)
    base_missing = study.base_missing() if waiting or study.ledger.run(study.base_key).status != "done" else []
    missing = {cell: study.missing_chunks(cell) for cell in waiting}
    families_left = Counter(family_of(cell) for cell in waiting)
    progress = StudyProgress(len(base_missing) + sum(missing.values()), len(waiting))

    def tell(doing: str, chunks: int = 0) -> None:
        progress.doing, progress.chunks_done = doing, progress.chunks_done + chunks
        watch(progress)

    started = time.perf_counter()
    for quant in dict.fromkeys(cell.quant for cell in waiting):  # first: a type may ask for what is not there
        if not study.quantised(quant).exists():
            tell(f"quantising the source to {quant}")
            study.quantise(quant)
    if waiting:
        tell("the source")
        study.record_base(lambda: tell("the source", 1))
    for cell, event in runner(_jobs(study, waiting, tell)):
        key = study.key(cell)
        if isinstance(event, MeasuredChunk):
            study.ledger.add_chunk(key, event.number, event.scores, event.seconds)
            missing[cell] -= 1
            tell(f"{cell.label}: KL {np.mean(study.divergences(key)):.4f}", 1)
            continue
        progress.cells_done += 1
        if isinstance(event, CellFinished):
            status = "stopped" if event.reason else "done"
            study.ledger.set_run(Run(key, status, event.reason, event.facts | {"operation": study.operation_key(cell)}))
            _note_best(progress, cell, float(np.mean(study.divergences(key))))
        else:
            progress.failures.append(f"{cell.label}: {event}")
            study.ledger.set_run(Run(key, "failed", str(event)))
        tell(cell.label, missing[cell])
        families_left[family_of(cell)] -= 1
        if not families_left[family_of(cell)]:
            study.remove_operated([c for c in waiting if family_of(c) == family_of(cell)])
    study.ledger.set_facts({"seconds": study.ledger.facts().get("seconds", 0.0) + time.perf_counter() - started})
    return progress


def _jobs(study: Study, waiting: Sequence[Cell], tell: Callable[[str], None]) -> Iterator[CellJob]:
    """The jobs of cells, each family's operated tensors made when its first job is asked for."""
    for plan, family in families(waiting):
        if plan:
            tell(f"operating: {family[0].label}")
            study.operate(family)
        for cell in family:
            study.ledger.set_run(replace(study.ledger.run(study.key(cell)), status="running", reason=None))
            yield study.job(cell)


def _note_best(progress: StudyProgress, cell: Cell, divergence: float) -> None:
    if cell.plan and (progress.best is None or divergence < progress.best[0]):
        progress.best = divergence, cell.label
