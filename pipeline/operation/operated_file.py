"""One output of an operation while it is made."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from pipeline.observations.experts import expert_notes
from pipeline.observations.statistics_file import calibration_facts
from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan
from pipeline.operation.provenance import operated_metadata
from pipeline.operation.reconstruct import RebuiltGroup, left_whole
from pipeline.operation.report import OperationReport
from pipeline.operation.tally import Tally
from pipeline.progress import Stopwatch
from pipeline.projection import stack_name
from pipeline.targets import FEED_FORWARD


class OperatedFile:
    """One output while it is made: a tensor is written as soon as all its projections are rebuilt."""

    def __init__(
        self,
        layers: AttentionLayers,
        path: Path,
        plan: Plan,
        groups: Sequence[Group],
        together: Sequence[tuple[int, ...]],
        budgeted: Mapping[Group, int],
    ) -> None:
        self.model, self.path, self.plan, self.together = layers.model, path, plan, together
        self.layers = sorted(number for sharing in together for number in sharing)
        self.calibration_facts = calibration_facts(layers.calibration)
        self.skipped = layers.skipped
        self.notes: tuple[str, ...] = ()
        if layers.calibration is not None and not plan.roles.isdisjoint(FEED_FORWARD):
            self.notes = expert_notes(layers.calibration, layers.blocks_beside(self.layers))
        self.tallies: dict[tuple[tuple[int, ...], str], Tally] = {}
        rebuilt = [group for group in groups if not left_whole(group, plan, budgeted)]
        self.waiting = Counter(_place(projection) for group in rebuilt for projection in group.targets(plan))
        self.replaced = {name: output_type(self.model.tensors[name], plan.outtype) for name, _ in self.waiting}
        self.experts = Counter[str]()  # the most that a layer has of a family
        for group in groups:
            self.experts[group.name] = max(self.experts[group.name], (group.block.expert or 0) + 1)
        self.ranks = {name: [0] * len(self.layers) * count for name, count in self.experts.items()}
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
        group = rebuilt.group
        for number in group.layers:
            index = self.layers.index(number) * self.experts[group.name] + (group.block.expert or 0)
            self.ranks[group.name][index] = rebuilt.rank
        tally = self.tallies.setdefault((group.layers, group.name), Tally(group, self.plan))
        tally.begin(rebuilt)
        if rebuilt.whole:
            for name, expert in {_place(projection) for projection in group.targets(self.plan)}:
                if name in self.replaced and (name, expert) not in self.waiting:  # other experts of it are replaced
                    self.writer.put(name, encode_tensor(self.model, name, {}, self.replaced[name], expert), expert)
        for matrix in rebuilding.timed(rebuilt.matrices):
            tally.add(matrix)
            self.matrices[matrix.projection] = matrix.values
            name, expert = place = _place(matrix.projection)
            self.waiting[place] -= 1
            if not self.waiting[place]:
                mine = {p: self.matrices.pop(p) for p in list(self.matrices) if _place(p) == place}
                self.writer.put(name, encode_tensor(self.model, name, mine, self.replaced[name], expert), expert)
        if not tally.finite:
            raise SurgeryError(
                f"{self.model.path}: {stack_name(group.roles)} of {group.described_layers} cannot be rebuilt:"
                " numbers overflow; the file is damaged, get it anew"
            )

    def finish(self, source_hash: str) -> None:
        """Write down what was done; the file is complete under its name when the stack of `open` ends."""
        self.writer.replace_metadata(self._metadata(source_hash))

    def report(self, seconds: float, decomposition_seconds: float) -> OperationReport:
        """What was done, once the file is complete."""
        size = self.path.stat().st_size
        return OperationReport(
            str(self.path),
            self.plan,
            tuple(tally.result() for tally in self.tallies.values()),
            self.skipped,
            size,
            seconds,
            decomposition_seconds,
            self.notes,
        )

    def _metadata(self, source_hash: str) -> Iterable[MetadataEntry]:
        if not self.replaced:
            return self.model.metadata.values()
        return operated_metadata(self.model, self.plan, self.together, self.ranks, source_hash, self.calibration_facts)


def _place(projection: Projection) -> tuple[str, int | None]:
    """The tensor, or the matrix of a tensor of experts, that a projection is in: what is written at once."""
    return projection.tensor, projection.block.expert
