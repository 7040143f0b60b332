"""One cell measured: its file is made, evaluated chunk by chunk, asked a question, and removed."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from native.isolated import isolated
from native.measure import MeasuredAnswer, MeasuredChunk, MeasurementStart, measure
from native.model import ContextOptions, default_threads
from pipeline.compare.cell import AS_IT_IS, Cell
from pipeline.compare.operations import kind_of
from pipeline.evaluation.statistics import interval, mean_and_standard_error, require_finite
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.protocol import CellFile
from pipeline.resources import machine_name

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
class CellJob:
    """All that measuring a cell takes, on this machine or another that sees the same files.

    `model` is the source, or its quantisation if the cell has one; `operated` holds the cell's operated tensors, if
    any, and for latent attention the whole model; `divergences` are those of the chunks that were measured before, from
    number 0 on; the cell's file is made in the folder `scratch`.
    """

    cell: Cell
    model: Path
    operated: Path | None
    importance: Path | None
    recorded: Path
    text: str = field(repr=False)
    chunks: int
    options: ContextOptions
    rule: StopRule
    divergences: tuple[float, ...]
    prompt: str
    answer_tokens: int
    scratch: Path


@dataclass(frozen=True)
class CellFinished:
    """Comes last: what is known of the cell beside its chunks."""

    reason: str | None
    facts: dict[str, Any]


def measure_cell(job: CellJob) -> Iterator[MeasuredChunk | CellFinished]:
    """Measure what is missing of a cell. Raises SurgeryError on NaN or infinity, NativeError when llama.cpp refuses."""
    with tempfile.TemporaryDirectory(prefix="cell-", dir=job.scratch) as folder:
        path = write_cell_file(job, Path(folder) / "cell.gguf")
        facts = machine_facts(job.options) | _size_facts(open_gguf(path), job)
        divergences = list(job.divergences)
        reason = job.rule.reason(divergences)
        first = job.chunks if reason else len(divergences)
        events = isolated(
            measure, str(path), job.text, str(job.recorded), record=False, first=first, chunks=job.chunks,
            options=job.options, prompt=job.prompt, max_tokens=job.answer_tokens,
        )  # fmt: skip
        with closing(events):
            stop = None
            while (event := _next(events, stop)) is not None:
                stop = None
                if isinstance(event, MeasurementStart):
                    facts["kv_cache_bytes"] = event.kv_cache_bytes
                elif isinstance(event, MeasuredAnswer):
                    facts |= answer_facts(event)
                else:
                    require_finite("the negative log-likelihood", event.scores.nll)
                    require_finite("the KL divergence", event.scores.kld)
                    divergences.append(float(event.scores.kld.mean()))
                    reason = job.rule.reason(divergences)
                    stop = reason is not None
                    yield event
        yield CellFinished(reason, facts)


def _size_facts(model: GGUFModel, job: CellJob) -> dict[str, Any]:
    """Bytes of the cell's file, and the operated tensors' bytes and numbers in it."""
    names = kind_of(job.cell.method).replaced(open_gguf(job.operated)) if job.operated else ()
    operated = [model.tensors[name] for name in names]
    return {
        "file_bytes": model.file_bytes,
        "operated_bytes": sum(info.nbytes for info in operated),
        "operated_numbers": sum(info.parameters for info in operated),
    }


def _next(events: Any, reply: bool | None) -> MeasurementStart | MeasuredChunk | MeasuredAnswer | None:
    try:
        return events.send(reply)
    except StopIteration:
        return None


def machine_facts(options: ContextOptions) -> dict[str, Any]:
    return {"machine": machine_name(), "threads": options.threads or default_threads()}


def answer_facts(answer: MeasuredAnswer) -> dict[str, Any]:
    """The answer, or why there is none: what was measured stays either way."""
    if answer.failure:
        return {"answer_failure": answer.failure}
    return {"answer": answer.pieces, "token_seconds": [round(seconds, 6) for seconds in answer.seconds]}


def write_cell_file(job: CellJob, path: Path) -> Path:
    """The file that the cell is measured on: written to `path`, or one that is there already."""
    if job.operated is None:
        return job.model
    quant = None if job.cell.quant == AS_IT_IS else job.cell.quant
    file = CellFile(job.model, job.operated, quant, job.importance, job.options.threads)
    return kind_of(job.cell.method).cell_file(file, path)
