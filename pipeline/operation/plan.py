"""What to do to a model: the choices of one operation, checked."""

import re
from dataclasses import dataclass

from pipeline.attention import ROLES
from pipeline.decompose.methods import METHODS, METRICS
from pipeline.decompose.principal_components import MEANS
from pipeline.errors import UsageError, suggestion
from pipeline.files.encode import OUTTYPES

DEFAULT_THRESHOLD = 0.9
VARIANCE_SHARE = "a share of the variance above 0 and at most 1, such as 0.9"
STORED_SHARE = "a share of the stored numbers above 0 and at most 1, such as 0.5"
GROUP_LAYERS = (
    "N for N neighbours, all, stride:N for every Nth, similar:N for N alike, or a list such as 0-9/10-19/20,22"
)
GROUP_LAYERS_SYNTAX = r"all|(stride:|similar:)?0*[1-9]\d*|(?!0+$)\d[\d,\s-]*(/\s*\d[\d,\s-]*)*"


@dataclass(frozen=True)
class Plan:
    """What to do to a model. Exactly one of `threshold` (0 < T <= 1), `rank` (>= 1) and `budget` (0 < B <= 1) is set.

    `budget` is the share of stored numbers that remains, spread over layers and groups. A metric other than `weights`
    needs calibration statistics, which are not part of the plan. `group_layers`, see `pipeline.operation.layer_groups`,
    is set for the methods that share components between layers, and for no other.
    """

    method: str = "shared-kv"
    targets: str = "qkv"
    threshold: float | None = DEFAULT_THRESHOLD
    rank: int | None = None
    budget: float | None = None
    metric: str = "weights"
    mean: str = "keep"
    layers: str = "all"
    group_layers: str | None = None
    outtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("method", self.method, METHODS),
            ("metric", self.metric, METRICS),
            ("mean", self.mean, MEANS),
            ("outtype", self.outtype, OUTTYPES),
        ):
            if value not in allowed:
                raise UsageError(
                    f"--{option} {value!r}: expected one of {', '.join(allowed)}{suggestion(value, allowed)}"
                )
        if not self.targets or set(self.targets) - set(ROLES) or len(set(self.targets)) != len(self.targets):
            raise UsageError(
                f"--targets {self.targets!r}: expected some of the letters q, k and v, such as qkv, kv or q"
            )
        if [self.threshold, self.rank, self.budget].count(None) != 2:
            raise UsageError("give one of --threshold, --rank and --budget")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold}: expected {VARIANCE_SHARE}")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UsageError(f"--budget {self.budget}: expected {STORED_SHARE}")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank {self.rank}: expected at least 1")
        self._check_group_layers()
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed {self.seed}: expected a number from 0 to {2**32 - 1}")

    def _check_group_layers(self) -> None:
        across = METHODS[self.method].across_layers
        if self.group_layers is None and across:
            raise UsageError(f"--method {self.method}: needs --group-layers: {GROUP_LAYERS}")
        if self.group_layers is not None and not across:
            raise UsageError(
                f"--group-layers {self.group_layers}: --method {self.method} shares nothing between layers"
            )
        if self.group_layers is not None and not re.fullmatch(GROUP_LAYERS_SYNTAX, self.group_layers):
            raise UsageError(f"--group-layers {self.group_layers!r}: expected {GROUP_LAYERS}")

    def keeps_everything(self, full_rank: int) -> bool:
        """Whether a group that has `full_rank` components loses nothing, so that its bytes can stay as they are."""
        everything = 1 in (self.threshold, self.budget) if self.rank is None else self.rank >= full_rank
        return self.mean != "drop" and everything
