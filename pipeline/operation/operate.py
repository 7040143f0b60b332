"""The operation itself: plans applied to a model, group by group, in the memory of one group."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from native.model import default_threads
from pipeline.attention import Projection, parse_layers
from pipeline.calibration.statistics_file import Calibration, calibration_facts, require_fit
from pipeline.errors import SurgeryError, UsageError
from pipeline.files.encode import encode_tensor, output_type
from pipeline.files.provenance import UNKNOWN_HASH, operated_metadata
from pipeline.gguf_file.metadata import MetadataEntry
from pipeline.gguf_file.reader import GGUFModel
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.layers import AttentionLayers
from pipeline.operation.budgeting import budgeted_ranks
from pipeline.operation.decomposer import Decomposer
from pipeline.operation.groups import Group, plan_groups
from pipeline.operation.layer_groups import layer_groups
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import RebuiltGroup, rebuild_group
from pipeline.progress import Progress, Stopwatch, silent
from pipeline.resources import peak_rss_bytes


@dataclass(frozen=True)
class GroupResult:
    """What happened to one group of projections of one layer, or of the `layers` that share its components.

    `explained` is the share of the group's variance that is kept; `relative_error` maps each replaced matrix to
    |A' - A| / |A| (Frobenius norms over all its layers, before rounding to the tensor's type); `factor_numbers` is what
    storing the factors instead of the product would take, `dense_numbers` what the matrices take.
    """

    layer: int
    layers: tuple[int, ...]
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
    skipped_layers: Mapping[int, str] = field(default_factory=dict)
    output_bytes: int = 0
    seconds: float = 0.0
    decomposition_seconds: float = 0.0

    @property
    def factor_numbers(self) -> int:
        return sum(group.factor_numbers for group in self.layers)

    @property
    def dense_numbers(self) -> int:
        return sum(group.dense_numbers for group in self.layers)

    @property
    def skipped_by_reason(self) -> dict[str, list[int]]:
        """The layers that were left alone, by the reason."""
        result: dict[str, list[int]] = {}
        for number, reason in self.skipped_layers.items():
            result.setdefault(reason, []).append(number)
        return result

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            **asdict(self.plan),
            "layers": [asdict(group) for group in self.layers],
            "skipped_layers": list(self.skipped_layers),
            "skipped_by_reason": self.skipped_by_reason,
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
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> OperationReport:
    """Write `output`: `model` with its q, k and v replaced as `plan` says, everything else byte-identical.

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
    layers = AttentionLayers(model, _required_calibration(model, plans[0], calibration))
    together = layer_groups(layers, parse_layers(plans[0].layers, layers), plans[0])
    for plan in plans:  # the groups are the same, but each plan is checked
        groups = plan_groups(layers, together, plan)
    files = [_OperatedFile(layers, path, plan, groups, together) for path, plan in outputs.items()]
    operated = any(file.replaced for file in files)
    decomposer = Decomposer(layers, groups, plans, threads or default_threads())
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as background, ExitStack() as stack:
        stack.callback(stopped.set)  # before the pool waits: an error or Ctrl-C must not wait for the hash
        source_hash = background.submit(model.sha256, stopped.is_set) if operated else None
        decomposing = Stopwatch()
        with decomposing:
            budgeted = budgeted_ranks(decomposer)
        for file in files:
            file.open(stack, operated_only=operated_only, force=force)
        for done, (group, decomposition) in enumerate(
            zip(groups, decomposing.timed(decomposer.decompositions()), strict=True)
        ):
            progress(done, len(groups), "")
            rebuilt = rebuild_group(group, decomposition, plans, budgeted)
            for file, result in zip(files, decomposing.timed(rebuilt), strict=True):
                file.add(result, decomposing)
        progress(len(groups), len(groups), "")
        for file in files:
            file.finish(source_hash.result() if source_hash else UNKNOWN_HASH)
    for file in files:
        file.report.output_bytes = file.path.stat().st_size
        file.report.decomposition_seconds, file.report.seconds = decomposing.seconds, time.perf_counter() - started
    return [file.report for file in files]


class _OperatedFile:
    """One output while it is made: a tensor is written as soon as all its projections are rebuilt."""

    def __init__(
        self,
        layers: AttentionLayers,
        path: Path,
        plan: Plan,
        groups: Sequence[Group],
        together: Sequence[tuple[int, ...]],
    ) -> None:
        self.model, self.path, self.plan, self.together = layers.model, path, plan, together
        self.layers = sorted(number for sharing in together for number in sharing)
        self.calibration_facts = calibration_facts(layers.calibration)
        self.report = OperationReport(str(path), plan, skipped_layers=layers.skipped)
        rebuilt = [group for group in groups if not plan.keeps_everything(group.full_rank)]
        self.waiting = Counter(projection.tensor for group in rebuilt for projection in group.targets(plan))
        self.replaced = {name: output_type(self.model.tensors[name], plan.outtype) for name in self.waiting}
        self.ranks = {group.name: [0] * len(self.layers) for group in groups}
        self.matrices: dict[Projection, np.ndarray] = {}

    def open(self, stack: ExitStack, *, operated_only: bool, force: bool) -> None:
        """Begin the file, to be completed or removed when `stack` ends, and copy what stays as it is."""
        model = self.model
        tensors = [t for t in model.tensors.values() if t.name in self.replaced or not operated_only]
        self.writer = stack.enter_context(
            create_gguf(
                self.path,
                self._metadata(UNKNOWN_HASH),
                [TensorDeclaration(t.name, t.shape, self.replaced.get(t.name, t.type)) for t in tensors],
                alignment=model.alignment,
                force=force,
                sources=model.paths,
            )
        )
        for tensor in tensors:
            if tensor.name not in self.replaced:
                self.writer.copy_from(model, tensor.name)

    def add(self, rebuilt: RebuiltGroup, rebuilding: Stopwatch) -> None:
        """Take a group's matrices, and write the tensors that are complete with them."""
        for number in rebuilt.group.layers:
            self.ranks[rebuilt.group.name][self.layers.index(number)] = rebuilt.rank
        errors: defaultdict[str, float] = defaultdict(float)
        energies: defaultdict[str, float] = defaultdict(float)
        for matrix in rebuilding.timed(rebuilt.matrices):
            role, name = matrix.projection.role, matrix.projection.tensor
            errors[role] += matrix.error
            energies[role] += matrix.energy
            self.matrices[matrix.projection] = matrix.values
            self.waiting[name] -= 1
            if not self.waiting[name]:
                mine = {p: self.matrices.pop(p) for p in list(self.matrices) if p.tensor == name}
                self.writer.put(name, encode_tensor(self.model, name, mine, self.replaced[name]))
        roles = dict.fromkeys(projection.role for projection in rebuilt.group.targets(self.plan))
        relative = {role: (errors[role] / energies[role]) ** 0.5 if energies[role] else 0.0 for role in roles}
        if not np.isfinite([rebuilt.explained, *relative.values()]).all():
            raise SurgeryError(
                f"{self.model.path}: {rebuilt.group.name} of {rebuilt.group.described_layers} cannot be rebuilt:"
                " numbers overflow; the file is damaged, get it anew"
            )
        self.report.layers.append(_group_result(self.plan, rebuilt, relative))

    def finish(self, source_hash: str) -> None:
        self.writer.replace_metadata(self._metadata(source_hash))

    def _metadata(self, source_hash: str) -> Iterable[MetadataEntry]:
        if not self.replaced:
            return self.model.metadata.values()
        return operated_metadata(self.model, self.plan, self.together, self.ranks, source_hash, self.calibration_facts)


def _required_calibration(model: GGUFModel, plan: Plan, calibration: Calibration | None) -> Calibration | None:
    if plan.metric == "weights":
        return None
    if calibration is None:
        raise UsageError.of("metric", plan.metric, "needs calibration statistics")
    require_fit(calibration, model)
    if plan.metric == "attention" and not calibration.has_sensitivities:
        raise UsageError.of("calibration", calibration.path, "lacks sensitivities; make it with surgery calibrate")
    return calibration


def _group_result(plan: Plan, rebuilt: RebuiltGroup, relative_error: dict[str, float]) -> GroupResult:
    group = rebuilt.group
    dense = group.dense_numbers(plan)
    return GroupResult(
        layer=group.layer,
        layers=group.layers,
        group=group.name,
        rows=group.rows,
        columns=group.columns,
        rank=rebuilt.rank,
        explained=rebuilt.explained,
        relative_error=relative_error,
        factor_numbers=dense if plan.keeps_everything(group.full_rank) else group.stored_numbers(plan, rebuilt.rank),
        dense_numbers=dense,
    )
