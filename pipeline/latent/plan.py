"""How much to cache, and how it is divided."""

from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.latent.source import LatentSource

OUTTYPES = ("auto", "f32", "f16", "bf16")
BLOCK = 32  # numbers in a block of a quantised cache, of which a token's must be a whole number


@dataclass(frozen=True)
class LatentPlan:
    """`cache`: a share of the source's cached numbers in (0, 1], or if above 1 how many per token and layer.

    `rotary`: how many of them keep RoPE, an even number; None for a pair at each of the source's frequencies, but not
    more than half of the cache.
    """

    cache: float = 0.5
    rotary: int | None = None
    outtype: str = "auto"

    def __post_init__(self) -> None:
        if not self.cache > 0 or (self.cache > 1 and self.cache != int(self.cache)):
            raise UsageError(
                f"--cache {self.cache:g}: expected a share above 0 and at most 1, such as 0.5, or a whole number of"
                " numbers per token and layer"
            )
        if self.rotary is not None and (self.rotary < 2 or self.rotary % 2):
            raise UsageError(f"--rotary {self.rotary}: expected an even number, at least 2")
        if self.outtype not in OUTTYPES:
            raise UsageError(f"--outtype {self.outtype!r}: expected one of {', '.join(OUTTYPES)}")


@dataclass(frozen=True)
class CacheLayout:
    """What a token caches in a layer: `rank` numbers of latent, then 2 `pairs` numbers that RoPE rotates."""

    rank: int
    pairs: int

    @property
    def cached_numbers(self) -> int:
        return self.rank + 2 * self.pairs


def choose_layout(plan: LatentPlan, source: LatentSource) -> CacheLayout:
    """Divide what `plan` grants. A share is rounded down to whole blocks of a quantised cache where there is one.

    Raises UsageError for more than the source caches, or too little for the rotary numbers and a latent.
    """
    numbers = int(plan.cache)
    if plan.cache <= 1:
        numbers = int(plan.cache * source.cached_numbers + 1e-9)
        numbers = numbers // BLOCK * BLOCK or numbers
    if numbers > source.cached_numbers:
        raise UsageError(
            f"--cache {plan.cache:g}: the source caches {source.cached_numbers} numbers per token and layer"
        )
    if plan.rotary is not None and plan.rotary > source.head_size:
        raise UsageError(f"--rotary {plan.rotary}: the source rotates {source.head_size} numbers of a head")
    pairs = plan.rotary // 2 if plan.rotary else max(1, min(source.pairs, numbers // 4))
    rank = min(numbers - 2 * pairs, source.cached_numbers - 2 * pairs, source.width)
    if rank < 1:
        raise UsageError(f"--cache {plan.cache:g}: {numbers} numbers leave no latent beside {2 * pairs} rotary ones")
    return CacheLayout(rank, pairs)
