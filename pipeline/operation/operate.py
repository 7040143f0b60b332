"""The operation itself: plans applied to a model, group by group, in the memory of one group."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from native.model import default_threads
from pipeline.attention import parse_layers
from pipeline.errors import UsageError
from pipeline.gguf_file.provenance import UNKNOWN_HASH
from pipeline.gguf_file.reader import GGUFModel
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import Calibration, require_fit
from pipeline.operation.budgeting import budgeted_ranks
from pipeline.operation.decomposer import Decomposer
from pipeline.operation.groups import plan_groups
from pipeline.operation.layer_groups import layer_groups
from pipeline.operation.operated_file import OperatedFile
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import rebuild_group
from pipeline.operation.report import OperationReport
from pipeline.progress import Progress, Stopwatch, silent


def operate(
    model: GGUFModel,
    output: Path,
    plan: Plan,
    *,
    calibration: Calibration | None = None,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> OperationReport:
    """Write `output`: `model` with the projections replaced that `plan` names, everything else byte-identical.

    A group that keeps all its components keeps its bytes; when all groups do, the output is the input, byte for byte.
    `calibration` is needed for, and recorded with, any metric but `weights`. `threads` groups are decomposed
    at once, 0: as many as there are processors, within reason. `progress` counts groups. Raises UsageError
    for a plan that this model cannot follow, SurgeryError when a tensor or the disk is at fault.
    """
    return operate_family(
        model, {output: plan}, calibration=calibration, threads=threads, force=force, progress=progress
    )[0]


def operate_family(
    model: GGUFModel,
    outputs: Mapping[Path, Plan],
    *,
    calibration: Calibration | None = None,
    operated_only: bool = False,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> list[OperationReport]:
    """Write several operated files as `operate` does, each group decomposed once for all of them.

    The plans may differ in threshold, rank and budget alone. `operated_only` leaves all tensors out that are not
    replaced, see `pipeline.operation.patch`.
    """
    started = time.perf_counter()
    plans = list(outputs.values())
    layers = AttentionLayers(model, _required_calibration(model, plans[0], calibration), plans[0].roles)
    if plans[0].metric == "attention":
        layers.require_sensitivities()
    together = layer_groups(layers, parse_layers(plans[0].layers, layers, skipped=layers.skipped), plans[0])
    for plan in plans:  # the groups are the same, but each plan is checked
        groups = plan_groups(layers, together, plan)
    operated = not all(plan.keeps_everything(group.full_rank) for plan in plans for group in groups)
    decomposer = Decomposer(layers, groups, plans, threads or default_threads())
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as background, ExitStack() as stack:
        stack.callback(stopped.set)  # before the pool waits: an error or Ctrl-C must not wait for the hash
        source_hash = background.submit(model.sha256, stopped.is_set) if operated else None
        decomposing = Stopwatch()
        with decomposing:
            budgeted = budgeted_ranks(decomposer)
        files = [
            OperatedFile(layers, path, plan, groups, together, ranks)
            for (path, plan), ranks in zip(outputs.items(), budgeted, strict=True)
        ]
        for file in files:
            file.open(stack, operated_only=operated_only, force=force)
        for done, (group, decomposition) in enumerate(decomposing.timed(decomposer.decompositions())):
            progress(done, len(groups), "")
            for file, ranks in zip(files, budgeted, strict=True):
                with decomposing:
                    rebuilt = rebuild_group(group, decomposition, file.plan, ranks)
                file.add(rebuilt, decomposing)
        progress(len(groups), len(groups), "")
        for file in files:
            file.finish(source_hash.result() if source_hash else UNKNOWN_HASH)
    seconds = time.perf_counter() - started
    return [file.report(seconds, decomposing.seconds) for file in files]


def _required_calibration(model: GGUFModel, plan: Plan, calibration: Calibration | None) -> Calibration | None:
    if plan.metric == "weights":
        return None
    if calibration is None:
        raise UsageError.of("metric", plan.metric, "needs calibration statistics")
    require_fit(calibration, model, plan.roles)
    return calibration
