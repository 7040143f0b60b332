"""A study: its folder, and what its cells share: the ledger, the source's logits, quantised sources, operated tensors."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from native.isolated import isolated
from native.measure import MeasuredAnswer, MeasurementStart, logits_file, measure
from native.model import ContextOptions
from pipeline import __version__
from pipeline.calibration.statistics_file import Calibration, calibration_facts
from pipeline.compare.cell import AS_IT_IS, Cell, StudySubject, base_key, effective_plan, sha256_of
from pipeline.compare.ledger import Ledger, Run, make_folder, open_ledger, sole_writer
from pipeline.compare.measuring import CellJob, StopRule, answer_facts, machine_facts
from pipeline.compare.operations import kind_of, written_operation
from pipeline.errors import UsageError
from pipeline.evaluation.statistics import require_finite
from pipeline.files.texts import Text
from pipeline.gguf_file.reader import GGUFModel
from pipeline.protocol import Operation
from pipeline.quantization import quantize

CELLS = "cells"  # the folder of the files that are being measured


@dataclass(frozen=True)
class StudySettings:
    """How cells are measured: on `chunks` of `n_ctx` tokens of `text`, then `prompt` answered with `answer_tokens`."""

    text: Text
    chunks: int = 20
    n_ctx: int = 512
    threads: int = 0
    prompt: str = "What is machine learning?"
    answer_tokens: int = 64
    rule: StopRule = StopRule()
    importance_matrix: Path | None = None


class Study:
    """One model measured on one text. Get it from `open_study`, which holds its lock."""

    def __init__(
        self, folder: Path, model: GGUFModel, settings: StudySettings, calibration: Calibration | None, ledger: Ledger
    ) -> None:
        self.folder, self.model, self.settings, self.ledger = folder.resolve(), model, settings, ledger
        self.calibration = calibration
        importance = settings.importance_matrix
        self.subject = StudySubject(
            model.sha256(),
            settings.text.sha256,
            settings.n_ctx,
            sha256_of(calibration_facts(calibration)) if calibration else "",
            hashlib.sha256(importance.read_bytes()).hexdigest() if importance else "",
        )
        self.base_key = base_key(self.subject)
        self.options = ContextOptions(n_ctx=settings.n_ctx, threads=settings.threads)
        self.logits = self._folder(f"logits-{self.base_key[:16]}")

    def key(self, cell: Cell) -> str:
        return cell.key(self.subject)

    def _folder(self, name: str) -> Path:
        folder = self.folder / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def chunks(self) -> int:
        """How many chunks every cell gets: what was asked for, or all that the text has."""
        facts = self.ledger.facts()
        asked = self.settings.chunks
        return min(asked, facts["chunks"]) if facts.get("chunks_asked", -1) >= asked else asked

    def divergences(self, key: str) -> tuple[float, ...]:
        """The KL divergence of each measured chunk of a run, in nats a token."""
        return tuple(float(scores.kld.mean()) for scores in self.ledger.chunks(key))

    def missing_chunks(self, cell: Cell) -> int:
        """How many chunks a cell needs at the most; 0 when it has all, or enough for the stop rule."""
        divergences = self.divergences(self.key(cell))
        return 0 if self.settings.rule.reason(divergences) else max(self.chunks - len(divergences), 0)

    def unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that have something left to do, one for each run; those of one family stand together."""
        waiting: dict[str, Cell] = {}
        for cell in cells:
            run = self.ledger.run(self.key(cell))
            if run.status not in ("done", "stopped") or self.missing_chunks(cell):
                waiting.setdefault(run.key, cell)
        return [cell for _, family in families(list(waiting.values())) for cell in family]

    def base_missing(self) -> list[int]:
        """The chunks whose logits of the source are not there."""
        known = self.ledger.chunk_count(self.base_key)
        return [n for n in range(self.chunks) if n >= known or not logits_file(self.logits, n).exists()]

    def record_base(self, advance: Callable[[], None]) -> None:
        """Decode the source once: its logits of every chunk into files, its scores and answer into the ledger."""
        missing = self.base_missing()
        run = self.ledger.run(self.base_key)
        if not missing and run.status == "done":
            return
        events = isolated(
            measure, str(self.model.path), self.settings.text.content, str(self.logits), record=True,
            first=missing[0] if missing else self.chunks, chunks=self.settings.chunks, options=self.options,
            prompt=self.settings.prompt, max_tokens=self.settings.answer_tokens,
        )  # fmt: skip
        facts = machine_facts(self.options) | {"file_bytes": self.model.file_bytes}
        for event in events:
            if isinstance(event, MeasurementStart):
                facts["kv_cache_bytes"] = event.kv_cache_bytes
                self.ledger.set_facts({"chunks": event.chunks, "chunks_asked": self.settings.chunks})
            elif isinstance(event, MeasuredAnswer):
                facts |= answer_facts(event)
            else:
                require_finite("the source's negative log-likelihood", event.scores.nll)
                self.ledger.add_chunk(self.base_key, event.number, event.scores, event.seconds)
                advance()
        self.ledger.set_run(Run(self.base_key, "done", None, facts))

    def quantised(self, quant: str) -> Path:
        """Where the source quantised to `quant` is, see `quantise`."""
        if quant == AS_IT_IS:
            return self.model.path.resolve()
        name = sha256_of([__version__, self.subject.model_sha256, self.subject.importance_sha256])[:16]
        return self._folder("quantised") / f"{quant}-{name}.gguf"

    def quantise(self, quant: str) -> None:
        """Quantise the source to `quant`, once for all cells."""
        quantize(
            self.model, self.quantised(quant), quant,
            importance_matrix=self.settings.importance_matrix, threads=self.settings.threads,
        )  # fmt: skip

    def operated(self, plan: Operation) -> Path:
        """Where the tensors are that `plan` operates on, see `operate`."""
        return self._folder("operated") / f"{self._plan_key(plan)[:32]}.gguf"

    def _plan_key(self, plan: Operation) -> str:
        """Under which key the ledger has what `plan` did."""
        return self.key(Cell(plan))

    def operate(self, cells: Sequence[Cell]) -> None:
        """Make the operated tensors of a family's cells, whichever are missing, from one decomposition."""
        plans = {self.operated(plan): plan for cell in cells if (plan := effective_plan(cell.plan))}
        missing = {path: plan for path, plan in plans.items() if not path.exists() or not self.operation(plan)}
        if missing:
            perform = kind_of(cells[0].method).perform
            reports = perform(self.model, missing, self.calibration, self.settings.threads)
            for plan, report in zip(missing.values(), reports, strict=True):
                self.ledger.add_operation(self._plan_key(plan), report.to_dict())

    def operation_key(self, cell: Cell) -> str | None:
        """Under which key the ledger has what was done to the cell's model."""
        plan = effective_plan(cell.plan)
        return self._plan_key(plan) if plan else None

    def operation(self, plan: Operation) -> dict[str, object] | None:
        return self.ledger.operation(self._plan_key(plan))

    def remove_operated(self, cells: Sequence[Cell]) -> None:
        """Remove what `operate` made; it takes seconds to make again, and much room."""
        for cell in cells:
            if plan := effective_plan(cell.plan):
                self.operated(plan).unlink(missing_ok=True)

    def job(self, cell: Cell) -> CellJob:
        """What measuring the cell takes; the family must have been operated on."""
        plan = effective_plan(cell.plan)
        settings = self.settings
        return CellJob(
            cell=cell,
            model=self.quantised(cell.quant),
            operated=self.operated(plan) if plan else None,
            importance=settings.importance_matrix and settings.importance_matrix.resolve(),
            recorded=self.logits,
            text=settings.text.content,
            chunks=self.chunks,
            options=replace(self.options, type_k=cell.cache_type, type_v=cell.cache_type),
            rule=settings.rule,
            divergences=self.divergences(self.key(cell)),
            prompt=settings.prompt,
            answer_tokens=settings.answer_tokens,
            scratch=self._folder(CELLS),
        )


def family_of(cell: Cell) -> str:
    """A name for all cells whose operations come from one decomposition; empty for the source's own."""
    plan = effective_plan(cell.plan)
    return json.dumps(written_operation(plan.family()), sort_keys=True) if plan else ""


def families(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Cells family by family, the source's own first."""
    for family, members in groupby(sorted(cells, key=family_of), key=family_of):
        yield family, list(members)


@contextmanager
def open_study(
    folder: Path,
    model: GGUFModel,
    settings: StudySettings,
    calibrate: Callable[[], Calibration | None] = lambda: None,
) -> Iterator[Study]:
    """Open the study in `folder`, or begin it, for this process alone; then `calibrate`, if its cells need that.

    Raises UsageError when another process has it, or when it is of another model or text; SurgeryError for a ledger
    that is damaged or newer.
    """
    make_folder(folder)
    with sole_writer(folder), open_ledger(folder, create=True) as ledger:
        shutil.rmtree(folder / "work" / CELLS, ignore_errors=True)  # what a killed process left
        known = ledger.facts()
        for what, name, digest in (
            ("model", model.name, model.sha256()),
            ("text", settings.text.name, settings.text.sha256),
        ):
            if known and known[f"{what}_sha256"] != digest:
                raise UsageError(
                    f"{folder}: is a study of another {what} ({known[what]}, not this {name}); name another folder"
                )
        if known and known["n_ctx"] != settings.n_ctx:
            raise UsageError(
                f"--ctx {settings.n_ctx}: {folder} was measured with {known['n_ctx']}; name another folder"
            )
        calibration = calibrate()
        study = Study(folder, model, settings, calibration, ledger)
        ledger.set_facts(
            {
                "model": model.name,
                "architecture": model.architecture,
                "text": settings.text.name,
                **asdict(study.subject),
                "calibration": {k: v for k, v in calibration_facts(calibration).items() if k != "sketch"} or None,
                "prompt": settings.prompt,
                "created": known.get("created") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            | ({"calibration": known["calibration"]} if known.get("calibration") and not calibration else {})
        )
        yield study
