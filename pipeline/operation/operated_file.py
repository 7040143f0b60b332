"""One output of an operation while it is made."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pipeline.attention import Projection
from pipeline.errors import SurgeryError
from pipeline.gguf_file.encode import encode_tensor, output_type
from pipeline.gguf_file.metadata import MetadataEntry
from pipeline.gguf_file.provenance import UNKNOWN_HASH
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import calibration_facts
from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan
from pipeline.operation.provenance import operated_metadata
from pipeline.operation.reconstruct import RebuiltGroup
from pipeline.operation.report import GroupResult, OperationReport
from pipeline.progress import Stopwatch


class OperatedFile:
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
        self.skipped = layers.skipped
        self.results: list[GroupResult] = []
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
        self.results.append(_group_result(self.plan, rebuilt, relative))

    def finish(self, source_hash: str) -> None:
        """Write down what was done; the file is complete under its name when the stack of `open` ends."""
        self.writer.replace_metadata(self._metadata(source_hash))

    def report(self, seconds: float, decomposition_seconds: float) -> OperationReport:
        """What was done, once the file is complete."""
        size = self.path.stat().st_size
        return OperationReport(
            str(self.path), self.plan, tuple(self.results), self.skipped, size, seconds, decomposition_seconds
        )

    def _metadata(self, source_hash: str) -> Iterable[MetadataEntry]:
        if not self.replaced:
            return self.model.metadata.values()
        return operated_metadata(self.model, self.plan, self.together, self.ranks, source_hash, self.calibration_facts)


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
