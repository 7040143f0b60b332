"""What to do to a model: the choices of one operation, checked."""

from dataclasses import dataclass

from pipeline.attention import ROLES
from pipeline.decompose.methods import METHODS
from pipeline.decompose.principal_components import MEANS
from pipeline.encode import OUTTYPES
from pipeline.errors import UsageError

DEFAULT_THRESHOLD = 0.9


@dataclass(frozen=True)
class Plan:
    """What to do to a model. Exactly one of `threshold` (0 < T <= 1) and `rank` (>= 1) is set."""

    method: str = "shared-kv"
    targets: str = "qkv"
    threshold: float | None = DEFAULT_THRESHOLD
    rank: int | None = None
    mean: str = "keep"
    layers: str = "all"
    outtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("method", self.method, METHODS),
            ("mean", self.mean, MEANS),
            ("outtype", self.outtype, OUTTYPES),
        ):
            if value not in allowed:
                raise UsageError(f"--{option} {value!r}: expected one of {', '.join(allowed)}")
        if not self.targets or set(self.targets) - set(ROLES) or len(set(self.targets)) != len(self.targets):
            raise UsageError(
                f"--targets {self.targets!r}: expected some of the letters q, k and v, such as qkv, kv or q"
            )
        if (self.threshold is None) == (self.rank is None):
            raise UsageError("give either --threshold or --rank")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(
                f"--threshold {self.threshold}: expected a share of the variance above 0 and at most 1, such as 0.9"
            )
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank {self.rank}: expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed {self.seed}: expected a number from 0 to {2**32 - 1}")

    def keeps_everything(self, full_rank: int) -> bool:
        """Whether a group that has `full_rank` components loses nothing, so that its bytes can stay as they are."""
        return self.mean != "drop" and (self.threshold == 1 if self.rank is None else self.rank >= full_rank)
