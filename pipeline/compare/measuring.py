"""One cell measured: its file is made, evaluated chunk by chunk, asked a question, and removed."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from native.evaluate import EvaluationStart, ModelRun, ScoredChunk, TextChunks
from native.isolated import isolated
from native.measure import MeasuredAnswer, measure
from native.model import ContextOptions
from native.scoring import TokenScores
from pipeline.compare.cell import AS_IT_IS, Cell, algorithms
from pipeline.compare.operations import kind_of
from pipeline.evaluation.statistics import interval, mean_and_standard_error, require_finite
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.protocol import CellFile
from pipeline.revision import made_with, revisions
from pipeline.tasks.session import Question, Reply, Session

FEWEST_FOR_PRECISION = 4  # chunks; of fewer, the standard error itself is hardly known


@dataclass(frozen=True)
class StopRule:
    """When a cell needs no more chunks.

    above: nats; stop when the KL divergence is above this beyond doubt (the whole 95 % interval is)
    precision: stop when the standard error over chunks is at most this share of the KL divergence
    """

    above: float | None = None
    precision: float | None = None

    def reason(self, divergences: Sequence[float]) -> str | None:
        """Why a cell whose chunks have these KL divergences can stop; None if it goes on."""
        if len(divergences) < 2:
            return None
        values = np.array(divergences)
        mean, error = mean_and_standard_error(values)
        if self.above is not None and interval(values)[1] > self.above:
            return f"KL divergence above {self.above:g}"
        if self.precision is not None and len(values) >= FEWEST_FOR_PRECISION and error <= self.precision * mean:
            return f"standard error within {self.precision:.1%}"
        return None


@dataclass(frozen=True)
class JobText:
    """A text to measure a cell on: so many `chunks` of it, the source's logits in the folder `recorded`.

    `divergences` are the KL divergences of the chunks that were measured before, from number 0 on.
    """

    name: str
    sha256: str
    content: str = field(repr=False)
    chunks: int
    recorded: Path
    divergences: tuple[float, ...]

    def reason(self, rule: StopRule) -> str | None:
        return rule.reason(self.divergences)


@dataclass(frozen=True)
class CellJob:
    """All that measuring a cell takes, on this machine or another that sees the same files.

    `model` is the source, or its quantisation if the cell has one; `operated` holds the cell's operated tensors, if
    any, and for latent attention the whole model; no answer is asked for where `answer_tokens` is 0; `questions` are
    those of tasks that it has not answered; the cell's file is made in the folder `scratch`.
    """

    cell: Cell
    model: Path
    operated: Path | None
    importance: Path | None
    texts: tuple[JobText, ...]
    options: ContextOptions
    rule: StopRule
    prompt: str
    answer_tokens: int
    questions: tuple[Question, ...]
    scratch: Path


@dataclass(frozen=True)
class CellChunk:
    """A chunk of the text with this SHA-256, measured; `seconds` are those of decoding, without scoring."""

    text_sha256: str
    number: int
    scores: TokenScores
    seconds: float


@dataclass(frozen=True)
class CellReplies:
    """Replies to questions of tasks, by the questions' keys."""

    replies: dict[bytes, Reply]


@dataclass(frozen=True)
class CellFinished:
    """Comes last: by a text's SHA-256 why it was stopped early, None if it was not; and what is known of the cell."""

    reasons: dict[str, str | None]
    facts: dict[str, Any]


CellProgress = CellChunk | CellReplies | CellFinished


def measure_cell(job: CellJob) -> Iterator[CellProgress]:
    """Measure what is missing of a cell. Raises SurgeryError on NaN or infinity, NativeError when llama.cpp refuses."""
    with tempfile.TemporaryDirectory(prefix="cell-", dir=job.scratch) as folder:
        path = write_cell_file(job, Path(folder) / "cell.gguf")
        facts = {"made_with": made_with(job.options.threads, *algorithms(job.cell))} | _size_facts(open_gguf(path), job)
        divergences = [list(text.divergences) for text in job.texts]
        reasons = [text.reason(job.rule) for text in job.texts]
        wanted = [
            TextChunks(text.content, text.chunks, text.chunks if reason else len(text.divergences), str(text.recorded))
            for text, reason in zip(job.texts, reasons, strict=True)
        ]
        run = ModelRun(str(path), job.options)
        events = isolated(measure, run, wanted, prompt=job.prompt, max_tokens=job.answer_tokens)
        with closing(events):
            stop = None
            while (event := _next(events, stop)) is not None:
                stop = None
                if isinstance(event, EvaluationStart):
                    facts["kv_cache_bytes"] = event.kv_cache_bytes[0]
                elif isinstance(event, MeasuredAnswer):
                    facts |= answer_facts(event, job.prompt, job.answer_tokens)
                else:
                    text, (scores,) = job.texts[event.text], event.scores
                    where = f"chunk {event.number} of {text.name}"
                    require_finite("the negative log-likelihood", scores.nll, where)
                    require_finite("the KL divergence", scores.kld, where)
                    divergences[event.text].append(float(scores.kld.mean()))
                    reasons[event.text] = job.rule.reason(divergences[event.text])
                    stop = reasons[event.text] is not None
                    yield CellChunk(text.sha256, event.number, scores, event.seconds[0])
        if job.questions:
            with Session(path, job.options) as session:
                yield from map(CellReplies, session.keyed_replies(job.questions))
        yield CellFinished({text.sha256: reason for text, reason in zip(job.texts, reasons, strict=True)}, facts)


def _size_facts(model: GGUFModel, job: CellJob) -> dict[str, Any]:
    """Bytes of the cell's file, and the operated tensors' bytes and numbers in it."""
    names = kind_of(job.cell.method).replaced(open_gguf(job.operated)) if job.operated else ()
    operated = [model.tensors[name] for name in names]
    return {
        "file_bytes": model.file_bytes,
        "operated_bytes": sum(info.nbytes for info in operated),
        "operated_numbers": sum(info.parameters for info in operated),
    }


def _next(events: Any, reply: bool | None) -> EvaluationStart | ScoredChunk | MeasuredAnswer | None:
    try:
        return events.send(reply)
    except StopIteration:
        return None


def answer_facts(answer: MeasuredAnswer, prompt: str, max_tokens: int) -> dict[str, Any]:
    """What a ledger holds of an answer: to what, in at most how many tokens, and the seconds of each.

    Or why there is none: what was measured stays either way.
    """
    if answer.failure:
        return {
            "answer": None,
            "token_seconds": [],
            "answer_failure": answer.failure,
            "asked": asked(prompt, max_tokens),
        }
    seconds = [round(seconds, 6) for seconds in answer.seconds]
    return {
        "answer": answer.pieces,
        "token_seconds": seconds,
        "answer_failure": None,
        "asked": asked(prompt, max_tokens),
    }


def asked(prompt: str, max_tokens: int) -> list[Any]:
    """What an answer is an answer to, and by which code: it is asked for again when any of that is another."""
    return [prompt, max_tokens, revisions("answers")]


def write_cell_file(job: CellJob, path: Path) -> Path:
    """The file that the cell is measured on: written to `path`, or one that is there already."""
    if job.operated is None:
        return job.model
    quant = None if job.cell.quant == AS_IT_IS else job.cell.quant
    file = CellFile(job.model, job.operated, quant, job.importance, job.options.threads)
    return kind_of(job.cell.method).cell_file(file, path)
