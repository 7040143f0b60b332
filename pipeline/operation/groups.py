"""Which projections share components: the groups that a plan makes of a model's layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.attention import Projection
from pipeline.decompose.methods import METHODS
from pipeline.errors import UsageError
from pipeline.operation.plan import Plan

Layers = Mapping[int, dict[str, Projection]]


@dataclass(frozen=True)
class Group:
    """Projections that share components: `members` in the order in which their rows are stacked."""

    roles: str
    members: tuple[Projection, ...]

    @property
    def layer(self) -> int:
        """The first of the layers."""
        return self.members[0].layer

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose projections are members, most often one."""
        return tuple(dict.fromkeys(projection.layer for projection in self.members))

    @property
    def described_layers(self) -> str:
        return f"layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(str, self.layers))}"

    def of_layer(self, number: int) -> list[Projection]:
        """The members that a layer has."""
        return [projection for projection in self.members if projection.layer == number]

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


def plan_groups(layers: Layers, together: Iterable[tuple[int, ...]], plan: Plan) -> list[Group]:
    """The groups of the chosen layers that have a matrix to replace, in the order of the layers.

    `together` are the layers that share components where the method does so between layers, see `layer_groups`.
    Raises UsageError when the plan asks for a rank that a group cannot have.
    """
    method = METHODS[plan.method]
    groups = [
        Group(roles, tuple(layers[number][role] for number in numbers for role in roles))
        for sharing in together
        for roles in method.groups
        if set(roles) & set(plan.targets)
        for numbers in ([sharing] if roles in method.across_layers else [(number,) for number in sharing])
    ]
    for group in groups:
        if plan.rank is not None and plan.rank > group.full_rank:
            members = " and ".join(group.roles)
            raise UsageError(
                f"--rank {plan.rank}: {members} of {group.described_layers} has {group.full_rank} components at the most"
            )
    return groups
