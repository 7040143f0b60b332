"""What a study found: every cell with its statistics, paired by chunk with the cells that it is to be compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from native.scoring import TokenScores
from pipeline.compare.cell import Cell, StudySubject, base_key, text_key
from pipeline.compare.commands import cell_commands
from pipeline.compare.damage import noted_damage
from pipeline.compare.found import (
    BaseResult,
    CellResult,
    GroupRank,
    RunFacts,
    Sizes,
    StudyResult,
    TasksFound,
    TextScores,
)
from pipeline.compare.ledger import Ledger, Run, is_being_measured, known_texts, open_ledger
from pipeline.compare.paired import difference, first_difference, generation_speed, interaction, prompt_speed
from pipeline.compare.tasks import measured_of
from pipeline.errors import UsageError
from pipeline.evaluation.scores import NOT_KNOWN, summarise
from pipeline.evaluation.statistics import pareto_front
from pipeline.tasks.items import task_results
from pipeline.tasks.passkey import heat_map

FRONTS = {"file": "file_bytes", "factored": "factored_bytes", "stored": "factors", "kv": "kv_cache_bytes"}
"""What a cell costs, by the name of the front: bytes of its file, bytes if the factors were stored, numbers stored for
the operated matrices, bytes of the KV cache."""
PLAN_CHOICES = ("targets", "threshold", "rank", "budget", "metric", "mean", "layers", "group_layers", "outtype", "seed")


def study_results(folder: Path) -> StudyResult:
    """The results of the study in `folder`. Raises as `open_ledger` does, UsageError for a study that is empty."""
    with open_ledger(folder) as ledger:
        results = ledger_results(ledger)
    if is_being_measured(folder):
        return results
    cells = (replace(c, status="pending") if c.status == "running" else c for c in results.cells)
    return replace(results, cells=tuple(cells))  # what an interrupted run had begun


def ledger_results(ledger: Ledger) -> StudyResult:
    """`study_results` of an open ledger. Raises UsageError for one that is empty."""
    facts = ledger.facts()
    if not facts:
        raise UsageError("the study has only been begun: nothing is measured yet")
    reader = _Reader(ledger, facts)
    cells = [reader.cell(cell) for cell in reader.keys]
    fronts = _fronts([cell for cell in cells if not cell.damage])
    base = reader.base()
    return StudyResult(
        study={
            **{name: facts.get(name) for name in _STUDY_FACTS},
            "text": ", ".join(text["name"] for text in reader.texts.values()),
            "texts": [{name: text[name] for name in ("name", "sha256", "chunks")} for text in reader.texts.values()],
            "chunks": max(text["chunks"] for text in reader.texts.values()) or None,
            "machine": base.machine,
            "threads": base.threads,
            "made_with": base.made_with,
        },
        base=base,
        cells=tuple(replace(cell, pareto=tuple(fronts.get(id(cell), ()))) for cell in cells),
        subspaces=facts.get("subspaces", {}),
    )


_STUDY_FACTS = (
    "model",
    "model_sha256",
    "architecture",
    "n_ctx",
    "calibration",
    "prompt",
    "command",
    "created",
    "seconds",
)


def _fronts(cells: Sequence[CellResult]) -> dict[int, list[str]]:
    """By the id of a cell, the fronts that it is on among `cells`."""
    found: dict[int, list[str]] = {}
    for front, cost in FRONTS.items():
        measured = [c for c in cells if c.status in ("done", "stopped") and getattr(c, cost) is not None]
        for index in pareto_front([getattr(c, cost) for c in measured], [c.kld_mean for c in measured]):
            found.setdefault(id(measured[index]), []).append(front)
    return found


class _Reader:
    """A ledger, its facts, its cells' keys, and the KL divergences of their chunks by cell and text, in nats a token."""

    def __init__(self, ledger: Ledger, facts: Mapping[str, Any]) -> None:
        self.ledger, self.facts, self.texts = ledger, facts, known_texts(facts)
        self.named = facts.get("named") or {"model": facts["model"]}  # what a command called them
        self.keys = ledger.cells()
        self.damage = noted_damage(dict(facts))
        # of the code that measured it, which may be another than this; none is written down before it is measured
        self.base_key = facts.get("base_key") or base_key(
            StudySubject(**{name: facts[name] for name in StudySubject.__dataclass_fields__})
        )
        self.base_chunks = self._chunks(self.base_key)
        cells = {cell: self._chunks(key) for cell, key in self.keys.items()}
        if not self.base_chunks and any(cells.values()):
            raise UsageError("the study was measured by a Surgery that is too old; run surgery compare on it again")
        self.chunks = {cell: self._beside_base(chunks) for cell, chunks in cells.items()}
        self.base_measured = measured_of(ledger, self.base_key)
        self.base_answer = (ledger.run(self.base_key).facts or {}).get("answer")

    def _chunks(self, key: str) -> dict[str, list[TokenScores]]:
        """The chunks of a run by the SHA-256 of their text, of the texts that have any."""
        found = {sha256: self.ledger.chunks(text_key(key, sha256)) for sha256 in self.texts}
        return {sha256: chunks for sha256, chunks in found.items() if chunks}

    def _beside_base(self, chunks: dict[str, list[TokenScores]]) -> dict[str, list[TokenScores]]:
        """The chunks with the base's negative log-likelihoods, which were measured before any cell's."""
        return {
            sha256: [
                replace(mine, base_nll=its.nll) for mine, its in zip(found, self.base_chunks[sha256], strict=False)
            ]
            for sha256, found in chunks.items()
        }

    def _losses(self, cell: Cell) -> dict[str, np.ndarray]:
        """The KL divergence of each chunk by text; empty for what is not a cell of the study."""
        chunks = self.chunks.get(cell, {})
        return {sha256: np.array([chunk.kld.mean() for chunk in found]) for sha256, found in chunks.items()}

    def base(self) -> BaseResult:
        run, chunks = self.ledger.run(self.base_key), self.base_chunks
        facts = run.facts or {}
        return BaseResult(
            **_scores(chunks),
            **vars(_sizes(facts, None)),
            **vars(self._run_facts(self.base_key, facts)),
            **vars(TasksFound(tuple(task_results(self.base_measured, None)), tuple(heat_map(self.base_measured)))),
            texts=self._text_scores(chunks),
        )

    def cell(self, cell: Cell) -> CellResult:
        key = self.keys[cell]
        run, chunks = self.ledger.run(key), self.chunks[cell]
        facts = run.facts or {}
        operation = self.ledger.operation(facts["operation"]) if facts.get("operation") else None
        alone, unoperated = cell.alone, replace(cell, plan=None)
        losses, quantised = self._losses(cell), self._losses(unoperated)
        texts = self._text_scores(chunks)
        status, reason = self._status(run, chunks)
        choices: dict[str, Any] = {name: getattr(cell.plan, name, None) for name in PLAN_CHOICES}
        return CellResult(
            **_scores(chunks),
            **vars(_sizes(facts, operation)),
            **vars(self._run_facts(key, facts)),
            **vars(self._tasks(key)),
            label=cell.label,
            status=status,
            reason=reason,
            method=cell.method,
            **choices,
            cache=getattr(cell.plan, "cache", None),
            quant=cell.quant,
            cache_type=cell.cache_type,
            commands=cell_commands(cell, self.named["model"], self.named.get("calibration")),
            chunks=sum(map(len, chunks.values())),
            texts=texts,
            worst=max(texts, key=lambda text: text.kld_mean).text if texts else None,
            over_quant=difference(losses, quantised) if cell.plan else None,
            interaction=interaction(losses, self._losses(alone), quantised)
            if cell not in (alone, unoperated)
            else None,
            ranks=[_rank(group) for group in (operation or {}).get("layers", []) if "rank" in group] or None,
            pareto=(),
            damage=cell in self.damage,
        )

    def _tasks(self, key: str) -> TasksFound:
        """What a cell was asked, as far as the source was asked the same, in the source's order."""
        mine = {(m.task, m.metric, m.names): m for m in measured_of(self.ledger, key)}
        shared = [m for base in self.base_measured if (m := mine.get((base.task, base.metric, base.names)))]
        return TasksFound(tuple(task_results(shared, self.base_measured)), tuple(heat_map(shared)))

    def _status(self, run: Run, chunks: Mapping[str, Sequence[TokenScores]]) -> tuple[str, str | None]:
        """How far a cell is over all texts, and why it is failed, stopped, or not yet done."""
        if run.status in ("failed", "running"):
            return run.status, run.reason
        runs = {sha256: self.ledger.run(text_key(run.key, sha256)) for sha256 in self.texts}
        if missing := [self.texts[sha256]["name"] for sha256, each in runs.items() if each.status == "pending"]:
            return "pending", f"not measured on {', '.join(missing)}" if chunks else None
        stopped = [each.reason for each in runs.values() if each.status == "stopped" and each.reason]
        return ("stopped", "; ".join(dict.fromkeys(stopped))) if stopped else (run.status, None)

    def _text_scores(self, chunks: Mapping[str, Sequence[TokenScores]]) -> tuple[TextScores, ...]:
        return tuple(
            TextScores(
                **_scores({sha256: found}),
                text=self.texts[sha256]["name"],
                text_sha256=sha256,
                chunks=len(found),
                kld_chunks=tuple(float(chunk.kld.mean()) for chunk in found if len(chunk.kld)),
            )
            for sha256, found in chunks.items()
        )

    def _run_facts(self, key: str, facts: Mapping[str, Any]) -> RunFacts:
        seconds = [s for sha256 in self.texts for s in self.ledger.chunk_seconds(text_key(key, sha256))]
        answer, made = facts.get("answer"), facts.get("made_with") or {}
        return RunFacts(
            prompt_speed=prompt_speed(seconds, self.facts["n_ctx"]),
            generation_speed=generation_speed(facts.get("token_seconds", [])),
            answer=answer,
            answer_failure=facts.get("answer_failure"),
            first_difference=first_difference(self.base_answer, answer),
            seconds=sum(seconds) if seconds else None,
            machine=made.get("machine"),
            threads=made.get("threads"),
            made_with=made or None,
        )


def _scores(chunks: Mapping[str, Sequence[TokenScores]]) -> dict[str, Any]:
    return vars(summarise(list(chunks.values())) if chunks else NOT_KNOWN)


def _sizes(facts: Mapping[str, Any], operation: Mapping[str, Any] | None) -> Sizes:
    """Bytes and numbers. Stored as factors, the operated matrices would take as many bytes a number as they do now."""
    numbers: dict[str, Any] = (operation or {}).get("stored_numbers") or {"factors": None, "dense": None}
    file_bytes = factored = facts.get("file_bytes")
    if operation and factored is not None and facts.get("operated_numbers"):
        bytes_a_number = facts["operated_bytes"] / facts["operated_numbers"]
        factored = round(factored - (numbers["dense"] - numbers["factors"]) * bytes_a_number)
    return Sizes(file_bytes, facts.get("kv_cache_bytes"), factored, numbers["factors"], numbers["dense"])


def _rank(group: Mapping[str, Any]) -> GroupRank:
    kept = {name: group[name] for name in ("layer", "layers", "group", "rank", "explained")}
    return GroupRank(**kept, full_rank=min(group["rows"], group["columns"]))
