"""Which projections share components: the groups that a plan makes of a model's layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.attention import Projection, find_attention, parse_layers
from pipeline.decompose.methods import METHODS
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.plan import Plan


@dataclass(frozen=True)
class Group:
    """Projections that share components: `members` in the order in which their rows are stacked."""

    roles: str
    members: tuple[Projection, ...]

    @property
    def layer(self) -> int:
        return self.members[0].layer

    @property
    def rows(self) -> int:
        return sum(projection.rows for projection in self.members)

    @property
    def columns(self) -> int:
        return self.members[0].columns

    @property
    def full_rank(self) -> int:
        """The most components that the group can have."""
        return min(self.rows, self.columns)

    def targets(self, plan: Plan) -> list[Projection]:
        """The members that are to be replaced; the components are fitted on all members."""
        return [projection for projection in self.members if projection.role in plan.targets]

    def stored_numbers(self, plan: Plan, rank: int) -> int:
        """What the factors of the replaced members take, in numbers: coefficients, basis and, if it is kept, mean."""
        rows = sum(projection.rows for projection in self.targets(plan))
        return rank * (rows + self.columns) + (self.columns if plan.mean == "keep" else 0)

    def dense_numbers(self, plan: Plan) -> int:
        """What the replaced members take as they are, in numbers."""
        return sum(projection.rows for projection in self.targets(plan)) * self.columns


def plan_groups(layers: Mapping[int, dict[str, Projection]], chosen: Iterable[int], plan: Plan) -> list[Group]:
    """The groups of the `chosen` layers that have a matrix to replace, in the order of the layers.

    Raises UsageError when the plan asks for a rank that a group cannot have.
    """
    groups = [
        Group(roles, tuple(layers[number][role] for role in roles))
        for number in chosen
        for roles in METHODS[plan.method].groups
        if set(roles) & set(plan.targets)
    ]
    for group in groups:
        if plan.rank is not None and plan.rank > group.full_rank:
            members = " and ".join(projection.role for projection in group.members)
            raise UsageError(
                f"--rank {plan.rank}: {members} of layer {group.layer} has {group.full_rank} components at the most"
            )
    return groups


def check_plan(model: GGUFModel, plan: Plan) -> None:
    """Raise UsageError for layers that the model does not have or ranks that are too large, before anything takes long."""
    layers = find_attention(model).layers
    plan_groups(layers, parse_layers(plan.layers, layers), plan)
