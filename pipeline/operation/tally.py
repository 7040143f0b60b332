"""What became of a group, added up: of all experts of a layer together, one after the other."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import RebuiltGroup, RebuiltMatrix
from pipeline.operation.report import GroupResult


@dataclass
class Tally:
    """Of a group, or of those of all experts of a layer, of which `group` is the first."""

    group: Group
    plan: Plan
    ranks: list[int] = field(default_factory=list)
    explained: list[float] = field(default_factory=list)
    factor_numbers: int = 0
    dense_numbers: int = 0
    errors: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    energies: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def begin(self, rebuilt: RebuiltGroup) -> None:
        """Count a group whose matrices are to be added."""
        group, dense = rebuilt.group, rebuilt.group.dense_numbers(self.plan)
        self.ranks.append(rebuilt.rank)
        self.explained.append(rebuilt.explained)
        self.factor_numbers += dense if rebuilt.whole else group.stored_numbers(self.plan, rebuilt.rank)
        self.dense_numbers += dense

    def add(self, matrix: RebuiltMatrix) -> None:
        self.errors[matrix.projection.role] += matrix.error
        self.energies[matrix.projection.role] += matrix.energy

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([*self.explained, *self.errors.values(), *self.energies.values()]).all())

    def result(self) -> GroupResult:
        group, roles = self.group, dict.fromkeys(projection.role for projection in self.group.targets(self.plan))
        return GroupResult(
            layer=group.layer,
            layers=group.layers,
            group=group.name,
            rows=group.rows,
            columns=group.columns,
            rank=max(self.ranks),
            explained=float(np.mean(self.explained)),
            relative_error={
                role: (self.errors[role] / self.energies[role]) ** 0.5 if self.energies[role] else 0.0 for role in roles
            },
            factor_numbers=self.factor_numbers,
            dense_numbers=self.dense_numbers,
            expert_ranks=tuple(self.ranks) if group.block.expert is not None else (),
        )
