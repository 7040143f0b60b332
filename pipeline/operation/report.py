"""What an operation did: typed results, and the JSON object that the command prints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.operation.plan import Plan
from pipeline.projection import shown_name
from pipeline.resources import peak_rss_bytes
from pipeline.tabular import Tabular


@dataclass(frozen=True)
class GroupResult:
    """What happened to one group of projections of one layer, or of the `layers` that share its components.

    `explained` is the share of the group's variance that is kept; `relative_error` maps each replaced matrix to
    |A' - A| / |A| (Frobenius norms over all its layers, before rounding to the tensor's type); `factor_numbers` is what
    storing the factors instead of the product would take, `dense_numbers` what the matrices take.

    A layer's experts, where they share nothing, are one result: each has `rows` by `columns`, its rank is in
    `expert_ranks`, of which `rank` is the largest, `explained` is the mean over them, and all else is of all of them
    together.
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
    expert_ranks: tuple[int, ...] = ()

    @property
    def shown_rank(self) -> str:
        """The rank, or those of the experts from the least to the largest."""
        least = min(self.expert_ranks, default=self.rank)
        return str(self.rank) if least == self.rank else f"{least}-{self.rank}"

    @property
    def shown_group(self) -> str:
        """The group as tables name it: k+v, or gate of 8 experts."""
        name, _, family = self.group.partition(".")
        if not family:
            return shown_name(name)
        if self.expert_ranks:
            return f"{name} of {len(self.expert_ranks)} {family}"
        family, _, use = family.partition(".")
        which = {"": f"all {family}", "most-used": f"the most used {family}", "others": f"the other {family}"}[use]
        return f"{name} of the shared expert" if family == "shared" else f"{name} of {which} together"


@dataclass(frozen=True)
class OperationReport(Tabular):
    """What `operate` did to the groups; `skipped_layers` were left alone, each for a reason.

    notes: what there is to know of the statistics of experts
    output_bytes: of the file; seconds: of all, decomposition_seconds: of decomposing and rebuilding
    """

    output: str
    plan: Plan
    groups: tuple[GroupResult, ...]
    skipped_layers: Mapping[int, str]
    output_bytes: int
    seconds: float
    decomposition_seconds: float
    notes: tuple[str, ...] = ()

    @property
    def factor_numbers(self) -> int:
        return sum(group.factor_numbers for group in self.groups)

    @property
    def dense_numbers(self) -> int:
        return sum(group.dense_numbers for group in self.groups)

    @property
    def skipped_by_reason(self) -> dict[str, list[int]]:
        """The layers that were left alone, by the reason."""
        result: dict[str, list[int]] = {}
        for number, reason in self.skipped_layers.items():
            result.setdefault(reason, []).append(number)
        return result

    def headline(self) -> str:
        share = self.factor_numbers / self.dense_numbers
        return f"{self.output}: {self.plan.label}, {share:.0%} of the numbers of {len(self.groups)} groups"

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row a group; the largest of the relative errors of its matrices."""
        return [
            {
                "layers": ",".join(map(str, group.layers)),
                "group": group.group,
                "rank": group.rank,
                "full_rank": min(group.rows, group.columns),
                "explained": group.explained,
                "relative_error": max(group.relative_error.values(), default=0.0),
            }
            for group in self.groups
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; its `layers` are the groups."""
        return {
            "output": self.output,
            **asdict(self.plan),
            "layers": [asdict(group) for group in self.groups],
            "skipped_layers": list(self.skipped_layers),
            "skipped_by_reason": self.skipped_by_reason,
            "notes": list(self.notes),
            "stored_numbers": {"factors": self.factor_numbers, "dense": self.dense_numbers},
            "output_bytes": self.output_bytes,
            "seconds": self.seconds,
            "decomposition_seconds": self.decomposition_seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }
