"""What a grid would take, before it is run: bytes of the cells' files, and time, from a short measurement."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from native.evaluate import ModelRun, ScoredChunk, TextChunks
from native.isolated import isolated
from native.measure import MeasuredAnswer, measure
from native.model import ContextOptions
from pipeline.compare.cell import AS_IT_IS, Cell, effective_plan
from pipeline.compare.families import families
from pipeline.compare.operations import kind_of
from pipeline.compare.study import StudySettings
from pipeline.compare.tasks import StudyTasks
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import named
from pipeline.quantization import quantized_bytes

ANSWER_TOKENS = 8  # enough to know how fast they come


@dataclass(frozen=True)
class StudyEstimate:
    """`file_bytes` of each cell's file, `seconds` for measuring all of them, `work_bytes` on disk meanwhile."""

    file_bytes: dict[Cell, int]
    seconds: float
    work_bytes: int


def estimate_study(
    model: GGUFModel, cells: Sequence[Cell], settings: StudySettings, tasks: StudyTasks | None = None
) -> StudyEstimate:
    """Measure one chunk, some tokens of an answer, one question and one layer's decomposition, and reckon with them.

    Calibrating and converting to latent attention are not in the estimate, and a metric is reckoned like none. Raises
    as `measure` and `operate` do.
    """
    chunk, token, logits_bytes = _decoding_seconds(model, settings)
    chunks = settings.chunks * len(settings.texts)
    cell_seconds = chunks * chunk + settings.answer_tokens * token + (tasks.seconds(token) if tasks else 0.0)
    operating = 0.0
    for _, family in families(cells):
        if plans := list(dict.fromkeys(plan for cell in family if (plan := effective_plan(cell.plan)))):
            operating += kind_of(plans[0].method).seconds(model, plans)
    sources = model.file_bytes
    quantised = {q: quantized_bytes(model, q) for q in dict.fromkeys(c.quant for c in cells) if q != AS_IT_IS}
    sizes = {cell: quantised.get(cell.quant, sources) for cell in cells}
    for cell in cells:
        if cell.quant == AS_IT_IS and (plan := effective_plan(cell.plan)):
            sizes[cell] += kind_of(plan.method).growth(model, plan)
    work = chunks * logits_bytes + sum(quantised.values()) + max(sizes.values())
    return StudyEstimate(sizes, (1 + len(cells)) * cell_seconds + operating, work)


def _decoding_seconds(model: GGUFModel, settings: StudySettings) -> tuple[float, float, int]:
    """Seconds a chunk, seconds a token of an answer, and bytes of a chunk's logits."""
    options = ContextOptions(n_ctx=settings.n_ctx, threads=settings.threads)
    chunk = token = 0.0
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        events = isolated(
            measure, ModelRun(str(model.path), options), [TextChunks(settings.texts[0].content, 1, recorded=folder)],
            record=True, prompt=settings.prompt, max_tokens=ANSWER_TOKENS,
        )  # fmt: skip
        for event in named(settings.texts, events):
            if isinstance(event, ScoredChunk):
                (chunk,) = event.seconds
            elif isinstance(event, MeasuredAnswer) and event.seconds:
                token = sum(event.seconds) / len(event.seconds)
        return chunk, token, sum(file.stat().st_size for file in Path(folder).iterdir())
