"""What a grid would take, before it is run: bytes of the cells' files, and time, from a short measurement."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from native.isolated import isolated
from native.measure import MeasuredAnswer, MeasuredChunk, measure
from native.model import ContextOptions
from pipeline.compare.cell import AS_IT_IS, Cell, effective_plan
from pipeline.compare.study import StudySettings, families
from pipeline.files.encode import output_type
from pipeline.gguf_file.reader import GGUFModel, tensor_nbytes
from pipeline.layers import AttentionLayers
from pipeline.operation.groups import plan_groups
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import decompose_group, rebuild_group
from pipeline.quantization import quantized_bytes

ANSWER_TOKENS = 8  # enough to know how fast they come


@dataclass(frozen=True)
class StudyEstimate:
    """`file_bytes` of each cell's file, `seconds` for measuring all of them, `work_bytes` on disk meanwhile."""

    file_bytes: dict[Cell, int]
    seconds: float
    work_bytes: int


def estimate_study(model: GGUFModel, cells: Sequence[Cell], settings: StudySettings) -> StudyEstimate:
    """Measure one chunk, some tokens of an answer and one layer's decomposition, and reckon with them.

    Calibrating and converting to latent attention are not in the estimate, and a metric is reckoned like none. Raises
    as `measure` and `operate` do.
    """
    chunk, token, logits_bytes = _decoding_seconds(model, settings)
    cell_seconds = settings.chunks * chunk + settings.answer_tokens * token
    plans = [
        [plan for cell in family if isinstance(plan := effective_plan(cell.plan), Plan)]
        for _, family in families(cells)
    ]
    decomposing = sum(_operating_seconds(model, list(dict.fromkeys(family))) for family in plans if family)
    sources = model.file_bytes
    quantised = {q: quantized_bytes(model, q) for q in dict.fromkeys(c.quant for c in cells) if q != AS_IT_IS}
    sizes = {cell: quantised.get(cell.quant, sources) for cell in cells}
    for cell in cells:
        if cell.quant == AS_IT_IS and isinstance(plan := effective_plan(cell.plan), Plan):
            sizes[cell] += _growth(model, plan)
    work = settings.chunks * logits_bytes + sum(quantised.values()) + max(sizes.values())
    return StudyEstimate(sizes, (1 + len(cells)) * cell_seconds + decomposing, work)


def _decoding_seconds(model: GGUFModel, settings: StudySettings) -> tuple[float, float, int]:
    """Seconds a chunk, seconds a token of an answer, and bytes of a chunk's logits."""
    options = ContextOptions(n_ctx=settings.n_ctx, threads=settings.threads)
    chunk = token = 0.0
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        for event in isolated(
            measure, str(model.path), settings.text.content, folder, record=True, first=0, chunks=1,
            options=options, prompt=settings.prompt, max_tokens=ANSWER_TOKENS,
        ):  # fmt: skip
            if isinstance(event, MeasuredChunk):
                chunk = event.seconds
            elif isinstance(event, MeasuredAnswer) and event.seconds:
                token = sum(event.seconds) / len(event.seconds)
        return chunk, token, sum(file.stat().st_size for file in Path(folder).iterdir())


def _operating_seconds(model: GGUFModel, plans: list[Plan]) -> float:
    """For a family, from its first layer under the metric `weights`."""
    plans = [replace(plan, metric="weights", budget=None, threshold=plan.threshold or 0.9, rank=None) for plan in plans]
    layers = AttentionLayers(model)
    started = time.perf_counter()
    for group in plan_groups(layers, [(min(layers),)], plans[0]):
        decomposition = decompose_group(layers, group, plans)
        for _ in rebuild_group(group, decomposition, plans, [{}] * len(plans)):
            pass
    return (time.perf_counter() - started) * len(layers)


def _growth(model: GGUFModel, plan: Plan) -> int:
    """By how many bytes operating makes a file larger whose tensors keep their types."""
    layers = AttentionLayers(model)
    operated = {p.tensor for group in plan_groups(layers, [tuple(layers)], plan) for p in group.targets(plan)}
    growth = 0
    for name in operated:
        info = model.tensors[name]
        growth += tensor_nbytes(info.shape, output_type(info, plan.outtype)) - info.nbytes
    return growth
