"""The operation itself: a plan applied to a model, layer by layer, in the memory of one layer."""

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.attention import Projection, find_attention, parse_layers
from pipeline.calibration.statistics_file import Calibration, calibration_facts, require_fit
from pipeline.errors import UsageError
from pipeline.gguf_file.metadata import MetadataEntry
from pipeline.gguf_file.reader import GGUFModel
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.operation.budgeting import budgeted_ranks
from pipeline.operation.encode import encode_tensor, output_type
from pipeline.operation.plan import Plan, groups_with_targets, targets_in
from pipeline.operation.provenance import UNKNOWN_HASH, operated_metadata
from pipeline.operation.reconstruct import choose_rank, decompose_group
from pipeline.progress import Progress, silent
from pipeline.resources import peak_rss_bytes


@dataclass(frozen=True)
class GroupResult:
    """What happened to one group of projections of one layer.

    `explained` is the share of the group's variance that is kept; `relative_error` maps each replaced matrix to
    |A' - A| / |A| (Frobenius norms, before rounding to the tensor's type); `factor_numbers` is what storing the
    factors instead of the product would take, `dense_numbers` what the matrices take.
    """

    layer: int
    group: str
    rows: int
    columns: int
    rank: int
    explained: float
    relative_error: dict[str, float]
    factor_numbers: int
    dense_numbers: int


@dataclass
class OperationReport:
    """What `operate` did; `to_dict` is the JSON object that the command prints."""

    output: str
    plan: Plan
    layers: list[GroupResult] = field(default_factory=list)
    skipped_layers: tuple[int, ...] = ()
    output_bytes: int = 0
    seconds: float = 0.0
    decomposition_seconds: float = 0.0

    @property
    def factor_numbers(self) -> int:
        return sum(group.factor_numbers for group in self.layers)

    @property
    def dense_numbers(self) -> int:
        return sum(group.dense_numbers for group in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            **asdict(self.plan),
            "layers": [asdict(group) for group in self.layers],
            "skipped_layers": list(self.skipped_layers),
            "stored_numbers": {"factors": self.factor_numbers, "dense": self.dense_numbers},
            "output_bytes": self.output_bytes,
            "seconds": self.seconds,
            "decomposition_seconds": self.decomposition_seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }


def operate(
    model: GGUFModel,
    output: Path,
    plan: Plan,
    *,
    calibration: Calibration | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> OperationReport:
    """Write `output`: `model` with its q, k and v replaced as `plan` says, everything else byte-identical.

    A group that keeps all its components keeps its bytes; when all groups do, the output is the input, byte for byte.
    `calibration` is needed for, and recorded with, any metric but `weights`. `progress` counts layers. Raises UsageError
    for a plan that this model cannot follow, SurgeryError when a tensor or the disk is at fault.
    """
    started = time.perf_counter()
    attention = find_attention(model)
    numbers = parse_layers(plan.layers, attention.layers)
    layers = [attention.layers[number] for number in numbers]
    replaced = _replaced_types(model, layers, plan)
    calibration = _required_calibration(model, plan, calibration)
    report = OperationReport(str(output), plan, skipped_layers=attention.skipped)

    def metadata(source_hash: str) -> Iterable[MetadataEntry]:
        if not replaced:
            return model.metadata.values()
        ranks = {group: [0] * len(numbers) for group in groups_with_targets(plan)}
        for result in report.layers:
            ranks[result.group][numbers.index(result.layer)] = result.rank
        return operated_metadata(model, plan, numbers, ranks, source_hash, calibration_facts(calibration))

    begun = time.perf_counter()
    budgeted = budgeted_ranks(model, layers, plan, calibration) if plan.budget and replaced else {}
    report.decomposition_seconds = time.perf_counter() - begun
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as background, ExitStack() as stack:
        stack.callback(stopped.set)  # before the pool waits: an error or Ctrl-C must not wait for the hash
        source_hash = background.submit(model.sha256, stopped.is_set) if replaced else None
        with create_gguf(
            output,
            metadata(UNKNOWN_HASH),
            [TensorDeclaration(t.name, t.shape, replaced.get(t.name, t.type)) for t in model.tensors.values()],
            alignment=model.alignment,
            force=force,
            sources=model.paths,
        ) as writer:
            for info in model.tensors.values():
                if info.name not in replaced:
                    writer.copy_from(model, info.name)
            for done, layer in enumerate(layers):
                progress(done, len(layers), "")
                begun = time.perf_counter()
                groups, matrices = operate_layer(model, layer, plan, calibration, budgeted)
                report.decomposition_seconds += time.perf_counter() - begun
                report.layers += groups
                for name in dict.fromkeys(projection.tensor for projection in matrices):
                    writer.put(name, encode_tensor(model, name, matrices, replaced[name]))
            progress(len(layers), len(layers), "")
            writer.replace_metadata(metadata(source_hash.result() if source_hash else UNKNOWN_HASH))
    report.output_bytes = output.stat().st_size
    report.seconds = time.perf_counter() - started
    return report


def operate_layer(
    model: GGUFModel,
    layer: dict[str, Projection],
    plan: Plan,
    calibration: Calibration | None = None,
    ranks: Mapping[tuple[int, str], int] = {},
) -> tuple[list[GroupResult], dict[Projection, np.ndarray]]:
    """Reconstruct one layer's projections: what happened to each group, and the matrices that are to be replaced.

    `ranks` are those that a budget gave, by layer and group.
    """
    results, matrices = [], {}
    for group in groups_with_targets(plan):
        members = [layer[role] for role in group]
        full_rank = _full_rank(members, plan)
        if plan.keeps_everything(full_rank):
            results.append(_group_result(plan, members, full_rank, 1.0, dict.fromkeys(targets_in(group, plan), 0.0)))
            continue
        number = members[0].layer
        decomposition = decompose_group(model, layer, group, plan, calibration)
        decomposition, rank = choose_rank(decomposition, plan, ranks.get((number, group)), number)
        stack, rebuilt = decomposition.stack, decomposition.reconstruct(rank)
        errors, row = {}, 0
        for projection in members:
            rows = slice(row, row + projection.rows)
            if projection.role in plan.targets:
                matrices[projection] = rebuilt[rows]
                norm = np.linalg.norm(stack[rows])
                errors[projection.role] = float(np.linalg.norm(rebuilt[rows] - stack[rows]) / norm) if norm else 0.0
            row += projection.rows
        results.append(_group_result(plan, members, rank, decomposition.components.explained(rank), errors))
    return results, matrices


def _required_calibration(model: GGUFModel, plan: Plan, calibration: Calibration | None) -> Calibration | None:
    if plan.metric == "weights":
        return None
    if calibration is None:
        raise UsageError(f"--metric {plan.metric}: needs calibration statistics")
    require_fit(calibration, model)
    if plan.metric == "attention" and not calibration.has_sensitivities:
        raise UsageError(f"--calibration {calibration.path}: lacks sensitivities; make it with surgery calibrate")
    return calibration


def _full_rank(members: list[Projection], plan: Plan) -> int:
    """The most components that a group of projections can have. Raises UsageError when `plan` asks for more."""
    full_rank = min(sum(projection.rows for projection in members), members[0].columns)
    if plan.rank is not None and plan.rank > full_rank:
        group = " and ".join(projection.role for projection in members)
        raise UsageError(
            f"--rank {plan.rank}: {group} of layer {members[0].layer} has {full_rank} components at the most"
        )
    return full_rank


def _group_result(
    plan: Plan, members: list[Projection], rank: int, explained: float, errors: dict[str, float]
) -> GroupResult:
    columns = members[0].columns
    rows = sum(projection.rows for projection in members)
    stored_rows = sum(projection.rows for projection in members if projection.role in plan.targets)
    dense = stored_rows * columns
    factors = rank * (stored_rows + columns) + (columns if plan.mean == "keep" else 0)
    return GroupResult(
        layer=members[0].layer,
        group="".join(projection.role for projection in members),
        rows=rows,
        columns=columns,
        rank=rank,
        explained=explained,
        relative_error=errors,
        factor_numbers=dense if plan.keeps_everything(min(rows, columns)) else factors,
        dense_numbers=dense,
    )


def _replaced_types(
    model: GGUFModel, layers: list[dict[str, Projection]], plan: Plan
) -> dict[str, GGMLQuantizationType]:
    """The type that each tensor to be replaced is written in; tensors that keep all their components are not in it."""
    replaced = {}
    for layer in layers:
        for group in groups_with_targets(plan):
            if not plan.keeps_everything(_full_rank([layer[role] for role in group], plan)):
                for role in targets_in(group, plan):
                    info = model.tensors[layer[role].tensor]
                    replaced[info.name] = output_type(info, plan.outtype)
    return replaced
