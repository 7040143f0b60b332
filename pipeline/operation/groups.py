"""Which projections share components: the groups that a plan makes of a model's layers."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.attention import Projection
from pipeline.decompose.methods import METHODS, Method
from pipeline.errors import UsageError
from pipeline.layers import AttentionLayers
from pipeline.observations.experts import share_of_tokens
from pipeline.observations.statistics_file import Calibration
from pipeline.operation.plan import Plan
from pipeline.projection import OWN, Block, stack_name, stacks
from pipeline.targets import QKV, TARGETS, parse_targets

ROUNDING = 1e-12  # of shares that add up to a half


@dataclass(frozen=True)
class Group:
    """Projections that share components: `members` in the order in which their rows are stacked, layer by layer.

    Where a layer's experts share by how often they are used, `use` says which these are: `most-used` or `others`.
    """

    roles: tuple[str, ...]
    members: tuple[Projection, ...]
    use: str = ""

    @property
    def name(self) -> str:
        """Such as `kv`, or `k_b+v_b` where k and v are made of a latent; of experts also their family: `gate.experts`."""
        return ".".join(filter(None, (stack_name(self.roles), self.block.family, self.use)))

    @property
    def units(self) -> tuple[tuple[int, Block], ...]:
        """The layers and feed-forward blocks whose projections are members, most often one; OWN also for attention."""
        return tuple(dict.fromkeys((projection.layer, projection.block) for projection in self.members))

    @property
    def block(self) -> Block:
        """The feed-forward block that the members are of, or, of several experts, their family."""
        blocks = {block for _, block in self.units}
        return self.members[0].block if len(blocks) == 1 and not self.use else Block(self.members[0].block.family)

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
        layers = f"layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(str, self.layers))}"
        return layers if self.block == OWN else f"{' '.join(filter(None, (self.use, str(self.block))))} of {layers}"

    def of_unit(self, unit: tuple[int, Block]) -> list[Projection]:
        """The members that one of the `units` has."""
        return [projection for projection in self.members if (projection.layer, projection.block) == unit]

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
        return [projection for projection in self.members if projection.is_target(plan.roles)]

    def stored_numbers(self, plan: Plan, rank: int) -> int:
        """What the factors of the replaced members take, in numbers: coefficients, basis and, if it is kept, mean."""
        rows = sum(projection.rows for projection in self.targets(plan))
        return rank * (rows + self.columns) + (self.columns if plan.mean == "keep" else 0)

    def dense_numbers(self, plan: Plan) -> int:
        """What the replaced members take as they are, in numbers."""
        return sum(projection.rows for projection in self.targets(plan)) * self.columns


def plan_groups(layers: AttentionLayers, together: Iterable[tuple[int, ...]], plan: Plan) -> list[Group]:
    """The groups of the chosen layers that have a matrix to replace, in the order of the layers and of their experts.

    `together` are the layers that share components where the method does so between layers, see `layer_groups`.
    Raises UsageError when the plan asks for a rank that a group cannot have, or names a projection that no layer has.
    """
    groups = []
    for sharing in together:
        for numbers, roles in _shared(layers.projections, sharing, METHODS[plan.method]):
            groups.append(Group(roles, tuple(layers.projections[number][role] for number in numbers for role in roles)))
        for number in sharing:
            groups += _beside(layers, number, METHODS[plan.method])
    groups = [group for group in groups if group.targets(plan)]
    if not groups:
        raise UsageError.of(
            "targets", plan.targets, f"none of the chosen layers has a matrix for that alone{_left(layers)}"
        )
    replaced = {target for group in groups for projection in group.targets(plan) for target in projection.targets}
    for name in parse_targets(plan.targets):
        if name in TARGETS and not QKV.issuperset(name) and name not in replaced:
            raise UsageError.of("targets", plan.targets, f"none of the chosen layers has {name}{_left(layers)}")
    for group in groups:
        if plan.rank is not None and plan.rank > group.full_rank:
            members = " and ".join(group.roles)
            raise UsageError.of(
                "rank", plan.rank,
                f"{members} of {group.described_layers} has {group.full_rank} components at the most",
            )  # fmt: skip
    return groups


def _beside(layers: AttentionLayers, number: int, method: Method) -> Iterator[Group]:
    """The groups of the feed-forward blocks that a layer has beside its own, of each alone or of experts of a family."""
    together: dict[tuple[str, str], list[Group]] = {}
    for block, projections in layers.beside.get(number, {}).items():
        for name in method.groups:
            for roles in stacks(projections, name):
                group = Group(roles, tuple(projections[role] for role in roles))
                if name in method.across_experts and block.expert is not None:
                    together.setdefault((name, block.family), []).append(group)
                else:
                    yield group
    for groups in together.values():
        by_use = _by_use(groups, layers.calibration) if method.by_use and layers.calibration else {"": groups}
        for use, alike in by_use.items():
            yield Group(groups[0].roles, tuple(projection for group in alike for projection in group.members), use)


def _by_use(experts: list[Group], calibration: Calibration) -> dict[str, list[Group]]:
    """The fewest of a layer's experts that at least half of the tokens are routed to, and the others, if there are any.

    Each in the order of its number; of equals the first is taken to be used more.
    """
    shares = [share_of_tokens(calibration, group.members[0]) for group in experts]
    order = np.argsort(-np.array(shares), kind="stable")
    count = int(np.searchsorted(np.cumsum(np.array(shares)[order]), 0.5 - ROUNDING)) + 1
    parts = {"most-used": sorted(order[:count]), "others": sorted(order[count:])}
    return {use: [experts[index] for index in chosen] for use, chosen in parts.items() if chosen}


def _left(layers: AttentionLayers) -> str:
    """What is left alone in a model, and why, for a message."""
    reasons = ", ".join(dict.fromkeys(layers.skipped.values()))
    return f"; left alone: {reasons}" if reasons else ""


def _shared(
    layers: Mapping[int, Collection[str]], sharing: tuple[int, ...], method: Method
) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
    """What shares components among the layers `sharing`: the roles of all of them, or of each alone."""
    for name in method.groups:
        for numbers in [sharing] if name in method.across_layers else [(number,) for number in sharing]:
            for roles in _stacks(layers, numbers, name):
                yield numbers, roles


def _stacks(layers: Mapping[int, Collection[str]], numbers: tuple[int, ...], name: str) -> list[tuple[str, ...]]:
    """What is stacked for the group `name` of layers that share components, or of one alone."""
    if len(numbers) == 1:
        return stacks(layers[numbers[0]], name)
    if others := [number for number in numbers if not set(layers[number]) >= set(name)]:
        raise UsageError.of("method", "cross-layer", f"layer {others[0]} has no {' and '.join(name)} that could share")
    return [tuple(name)]
