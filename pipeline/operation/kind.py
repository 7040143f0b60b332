"""Low-rank operations as studies have them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.attention import parse_layers
from pipeline.decompose.methods import METHODS
from pipeline.gguf_file.encode import output_type
from pipeline.gguf_file.reader import GGUFModel, open_gguf, tensor_nbytes
from pipeline.layers import AttentionLayers
from pipeline.observations.importance_matrix import read_importance_matrix
from pipeline.observations.statistics_file import Calibration
from pipeline.operation.decomposer import Decomposer
from pipeline.operation.groups import plan_groups
from pipeline.operation.layer_groups import check_plan
from pipeline.operation.operate import operate_family
from pipeline.operation.patch import write_operated, write_patched
from pipeline.operation.plan import Plan, low_rank_plans
from pipeline.operation.reconstruct import rebuild_group
from pipeline.operation.report import OperationReport
from pipeline.protocol import CellFile, OperationKind


def _perform(
    model: GGUFModel, plans: Mapping[Path, Plan], calibration: Calibration | None, threads: int
) -> list[OperationReport]:
    return operate_family(model, plans, calibration=calibration, operated_only=True, threads=threads, force=True)


def _cell_file(file: CellFile, output: Path) -> Path:
    model, operated = open_gguf(file.model), open_gguf(file.performed)
    if file.quant is None:
        write_operated(model, operated, output)
    else:
        importance = read_importance_matrix(file.importance) if file.importance else None
        write_patched(model, operated, output, importance=importance)
    return output


def _growth(model: GGUFModel, plan: Plan) -> int:
    layers = AttentionLayers(model, roles=plan.roles)
    chosen = tuple(parse_layers(plan.layers, layers, skipped=layers.skipped))
    operated = {p.tensor for group in plan_groups(layers, [chosen], plan) for p in group.targets(plan)}
    infos = [model.tensors[name] for name in operated]
    return sum(tensor_nbytes(info.shape, output_type(info, plan.outtype)) - info.nbytes for info in infos)


def _seconds(model: GGUFModel, plans: Sequence[Plan]) -> float:
    """From the first layer under the metric `weights`."""
    plans = [replace(plan, metric="weights", budget=None, threshold=plan.threshold or 0.9, rank=None) for plan in plans]
    layers = AttentionLayers(model, roles=plans[0].roles)
    started = time.perf_counter()
    groups = plan_groups(layers, [(number,) for number in layers], plans[0])
    first = [group for group in groups if group.layer == groups[0].layer]
    for group, found in Decomposer(layers, first, plans, 1).decompositions():
        for plan in plans:
            for _ in rebuild_group(group, found, plan, {}).matrices:
                pass
    return (time.perf_counter() - started) * len(layers)


LOW_RANK = OperationKind(
    plan=Plan,
    command="operate",
    quantises=True,
    methods=tuple(METHODS),
    algorithm="operation",
    of_grid=low_rank_plans,
    check=check_plan,
    perform=_perform,
    cell_file=_cell_file,
    replaced=lambda operated: list(operated.tensors),
    growth=_growth,
    seconds=_seconds,
)
