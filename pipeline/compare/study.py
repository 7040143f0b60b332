"""A study: its folder, and what its cells share: the ledger, the source's logits, quantised sources, operated tensors."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from native.model import ContextOptions
from pipeline.compare.cell import (
    AS_IT_IS,
    Cell,
    StudySubject,
    base_key,
    effective_plan,
    replies_key,
    text_key,
)
from pipeline.compare.families import families
from pipeline.compare.ledger import Ledger, Run, known_texts, make_folder, open_ledger, sole_writer
from pipeline.compare.measuring import CellJob, JobText, StopRule, asked
from pipeline.compare.operations import kind_of
from pipeline.compare.tasks import StudyTasks
from pipeline.errors import UsageError
from pipeline.evaluation.evaluate import require_distinct
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import Text
from pipeline.json_text import sha256_of
from pipeline.observations.statistics_file import Calibration, calibration_facts
from pipeline.protocol import Operation
from pipeline.quantization import quantize
from pipeline.revision import revisions
from pipeline.tasks.session import Question

CELLS = "cells"  # the folder of the files that are being measured


@dataclass(frozen=True)
class StudySettings:
    """How cells are measured: on `chunks` of `n_ctx` tokens of each text, then `prompt` answered with `answer_tokens`."""

    texts: tuple[Text, ...]
    chunks: int = 20
    n_ctx: int = 512
    threads: int = 0
    prompt: str = "What is machine learning?"
    answer_tokens: int = 64
    rule: StopRule = StopRule()
    importance_matrix: Path | None = None


class Study:
    """One model measured on some texts. Get it from `open_study`, which holds its lock."""

    def __init__(
        self,
        folder: Path,
        model: GGUFModel,
        settings: StudySettings,
        calibration: Calibration | None,
        ledger: Ledger,
        tasks: StudyTasks | None = None,
    ) -> None:
        self.folder, self.model, self.settings, self.ledger = folder.resolve(), model, settings, ledger
        self.calibration, self.tasks = calibration, tasks
        importance = settings.importance_matrix
        self.subject = StudySubject(
            model.sha256(),
            settings.n_ctx,
            sha256_of(calibration_facts(calibration)) if calibration else "",
            hashlib.sha256(importance.read_bytes()).hexdigest() if importance else "",
        )
        self.base_key = base_key(self.subject)
        self.options = ContextOptions(n_ctx=settings.n_ctx, threads=settings.threads)

    def key(self, cell: Cell) -> str:
        return cell.key(self.subject)

    def _folder(self, name: str) -> Path:
        folder = self.folder / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def logits(self, text: Text) -> Path:
        """The folder of the source's logits on a text."""
        return self._folder(f"logits-{text_key(self.base_key, text.sha256)[:16]}")

    def chunks(self, text: Text) -> int:
        """How many chunks of a text every cell gets: what was asked for, or all that it has."""
        known = known_texts(self.ledger.facts()).get(text.sha256, {})
        asked_for = self.settings.chunks
        return min(asked_for, known["chunks"]) if known.get("chunks_asked", -1) >= asked_for else asked_for

    def divergences(self, cell: Cell, text: Text) -> tuple[float, ...]:
        """The KL divergence of each measured chunk of a cell on a text, in nats a token."""
        return tuple(float(scores.kld.mean()) for scores in self.ledger.chunks(text_key(self.key(cell), text.sha256)))

    def missing_chunks(self, cell: Cell) -> int:
        """How many chunks a cell needs at the most; 0 when it has all, or on each text enough for the stop rule."""
        return sum(self._missing_on(text, self.divergences(cell, text)) for text in self.settings.texts)

    def _missing_on(self, text: Text, divergences: tuple[float, ...]) -> int:
        return 0 if self.settings.rule.reason(divergences) else max(self.chunks(text) - len(divergences), 0)

    def unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that have something left to do, one for each run; those of one family stand together."""
        waiting: dict[str, Cell] = {}
        for cell in cells:
            run = self.ledger.run(self.key(cell))
            if run.status != "done" or self.missing_chunks(cell) or self.answer_tokens(run) or self.questions(run.key):
                waiting.setdefault(run.key, cell)
        return [cell for _, family in families(list(waiting.values())) for cell in family]

    def questions(self, key: str) -> tuple[Question, ...]:
        """What of the study's tasks the run of this key has not answered."""
        return tuple(self.tasks.missing(self.ledger, key)) if self.tasks else ()

    def answer_tokens(self, run: Run) -> int:
        """How many tokens of an answer a run is to give: 0 when it has answered this prompt with as many."""
        wanted = self.settings.answer_tokens
        return 0 if (run.facts or {}).get("asked") == asked(self.settings.prompt, wanted) else wanted

    def quantised(self, quant: str) -> Path:
        """Where the source quantised to `quant` is, see `quantise`."""
        if quant == AS_IT_IS:
            return self.model.path.resolve()
        made_of = [revisions("quantising"), self.subject.model_sha256, self.subject.importance_sha256]
        name = sha256_of(made_of)[:16]
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

    def forget(self, cells: Sequence[Cell]) -> None:
        """Forget what was measured of these cells on any text."""
        texts = known_texts(self.ledger.facts())
        keys = [self.key(cell) for cell in cells]
        on_texts = (text_key(key, sha256) for key in keys for sha256 in texts)
        self.ledger.forget([*keys, *on_texts, *map(replies_key, keys)])

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
            texts=tuple(
                JobText(
                    text.name,
                    text.sha256,
                    text.content,
                    self.chunks(text),
                    self.logits(text),
                    self.divergences(cell, text),
                )
                for text in settings.texts
            ),
            options=replace(self.options, type_k=cell.cache_type, type_v=cell.cache_type),
            rule=settings.rule,
            prompt=settings.prompt,
            answer_tokens=self.answer_tokens(self.ledger.run(self.key(cell))),
            questions=self.questions(self.key(cell)),
            scratch=self._folder(CELLS),
        )


@contextmanager
def open_study(
    folder: Path,
    model: GGUFModel,
    settings: StudySettings,
    calibrate: Callable[[], Calibration | None] = lambda: None,
    tasks: StudyTasks | None = None,
) -> Iterator[Study]:
    """Open the study in `folder`, or begin it, for this process alone; then `calibrate`, if its cells need that.

    Its texts are those that were ever measured. Raises UsageError when another process has it, or when it is of another
    model, context or texts; SurgeryError for a ledger that is damaged, older or newer.
    """
    require_distinct(settings.texts)
    make_folder(folder)
    with sole_writer(folder), open_ledger(folder, create=True) as ledger:
        shutil.rmtree(folder / "work" / CELLS, ignore_errors=True)  # what a killed process left
        known = ledger.facts()
        if known and known["model_sha256"] != model.sha256():
            raise UsageError(
                f"{folder}: is a study of another model ({known['model']}, not this {model.name}); name another folder"
            )
        texts = known_texts(known)
        if texts and not texts.keys() & {text.sha256 for text in settings.texts}:
            names = ", ".join(text["name"] for text in texts.values())
            given = ", ".join(text.name for text in settings.texts)
            raise UsageError(
                f"{folder}: is a study of another text ({names}, not this {given}); name another folder, or both texts"
            )
        if known and known["n_ctx"] != settings.n_ctx:
            raise UsageError(
                f"`n_ctx={settings.n_ctx}`: {folder} was measured with {known['n_ctx']}; name another folder"
            )
        calibration = calibrate()
        study = Study(folder, model, settings, calibration, ledger, tasks)
        ledger.set_facts(
            {
                "model": model.name,
                "architecture": model.architecture,
                "texts": [
                    *texts.values(),
                    *(
                        {"name": text.name, "sha256": text.sha256, "chunks": 0, "chunks_asked": -1}
                        for text in settings.texts
                        if text.sha256 not in texts
                    ),
                ],
                **asdict(study.subject),
                "calibration": {k: v for k, v in calibration_facts(calibration).items() if k != "sketch"} or None,
                "prompt": settings.prompt,
                "created": known.get("created") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            | ({"calibration": known["calibration"]} if known.get("calibration") and not calibration else {})
        )
        yield study
