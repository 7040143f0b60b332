"""RoPE's frequencies as llama.cpp computes them, and how `deepseek2`, which takes no factors of a tensor, comes near to any.

`deepseek2` knows a base, a factor, and YaRN's ramp between them, whose ends are those of 32 and 1 turns in the original
context (its keys for others are not read). Frequencies that change their step somewhere, as Llama 3's do, are put into
more slots than there are frequencies: those before the ramp and after it meet the source's, and of the slots on the ramp
the nearest are taken, the others left empty. Slots that are empty cost two cached numbers each and nothing else.
Source: ggml_rope_yarn_corr_dims in ggml.c, rope_yarn in ggml-cpu/ops.cpp, llama-context.cpp, models/deepseek2.cpp.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import log

import numpy as np

EMPTY = -1
EXACT = 1e-7  # radians a token: what single precision does not tell
ENOUGH = 2.5e-5  # radians a token, for which no more slots are left empty
NEARLY_BEST = 1.25  # of the least deviation, that is worth fewer slots
SMALLEST_FACTOR = 0.05  # llama.cpp multiplies with powers of 1 + 0.1 log(factor), which must stay above 0
LONGEST = 2**31  # context that llama.cpp takes for a number
PLACES = (0.03, 0.5, 0.97)  # within a pair, where the ramp may begin: which pair its end is rounded to depends on it


@dataclass(frozen=True)
class Yarn:
    """YaRN's ramp: from `beta_fast` to `beta_slow` turns in `context` tokens. Peng et al., YaRN, 2023."""

    context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class Rope:
    """What llama.cpp is told of RoPE: `pairs` of numbers are turned, at base^(-i / pairs), over `factor` after the ramp."""

    pairs: int
    base: float
    factor: float = 1.0
    yarn: Yarn | None = None

    def frequencies(self) -> np.ndarray:
        """Radians a token of each pair, (pairs,)."""
        plain = np.asarray(self.base ** (-np.arange(self.pairs) / self.pairs))
        if self.yarn is None:
            return plain / self.factor
        step = log(self.base) / self.pairs
        ends = [
            log(self.yarn.context / (2 * np.pi * beta)) / step for beta in (self.yarn.beta_fast, self.yarn.beta_slow)
        ]
        low, high = max(0.0, np.floor(ends[0])), min(2.0 * self.pairs - 1, np.ceil(ends[1]))
        interpolated = np.clip((np.arange(self.pairs) - low) / max(0.001, high - low), 0, 1)
        return np.asarray(plain * (1 - interpolated + interpolated / self.factor))

    def stretched(self, pairs: int) -> "Rope":
        """The same step from pair to pair, and the same ramp, over more or fewer pairs."""
        return replace(self, pairs=pairs, base=stretched_base(self.base, self.pairs, pairs))

    @property
    def magnitude(self) -> float:
        """What YaRN multiplies q and k with, each, in llama.cpp."""
        return 1 + 0.1 * log(self.factor) if self.yarn and self.factor > 1 else 1.0

    @property
    def score_scale(self) -> float:
        """What `deepseek2` multiplies scores with, when YaRN's magnitude is cancelled: it takes any factor for YaRN's."""
        return 1.0 if self.yarn else (1 + 0.1 * log(self.factor)) ** 2


def stretched_base(base: float, pairs: int, other: int) -> float:
    """The base whose step over `other` pairs is that of `base` over `pairs`, in the single precision of llama.cpp."""
    if pairs == other:
        return base
    step = np.float32(base) ** (np.float32(-2) / np.float32(2 * pairs))
    return float(np.float32(float(step) ** -other))


@dataclass(frozen=True)
class RotarySlots:
    """`rope` of the converted model; `holds`: which of the source's pairs is in each of its pairs, or EMPTY.

    wanted: the frequency of each of the source's pairs
    """

    rope: Rope
    holds: tuple[int, ...]
    wanted: tuple[float, ...]

    def first(self, count: int) -> "RotarySlots":
        """The first `count` slots, which turn fastest. Where YaRN's ramp ends later than they do, llama.cpp shortens it."""
        return RotarySlots(self.rope.stretched(count), self.holds[:count], self.wanted)

    @cached_property
    def deviation(self) -> float:
        """The largest difference between the frequency of a held pair and what is wanted, radians a token."""
        offered = self.rope.frequencies()
        return max(
            (abs(float(offered[i]) - self.wanted[pair]) for i, pair in enumerate(self.holds) if pair != EMPTY),
            default=0.0,
        )

    @property
    def empty(self) -> int:
        return self.holds.count(EMPTY)


@lru_cache(maxsize=16)
def rotary_slots(rope: Rope, factors: tuple[float, ...] | None = None) -> RotarySlots:
    """Slots for a model whose RoPE is `rope`, each of its frequencies divided by one of `factors`, if there are any.

    As many are left empty, of an eighth of the pairs and two, as bring the largest deviation down to ENOUGH or near to
    the least.
    """
    wanted = rope.frequencies() / (1.0 if factors is None else np.array(factors))
    if rope.yarn is None or (rope.yarn.beta_fast, rope.yarn.beta_slow) == (Yarn.beta_fast, Yarn.beta_slow):
        same = _filled(rope, wanted)
        if same.deviation <= EXACT:
            return same
    plain = replace(rope, factor=1.0, yarn=None)
    last = float(plain.frequencies()[-1] / wanted[-1])
    factors_of_all = [factor for factor in (1.0, last) if factor >= SMALLEST_FACTOR]
    found = [min((_filled(replace(plain, factor=factor), wanted) for factor in factors_of_all), key=_worst)]
    for empty in range(rope.pairs // 8 + 3):
        longer = plain.stretched(rope.pairs + empty)
        found += [_filled(candidate, wanted) for candidate in _ramps(longer, wanted, last, empty)]
    least = min(map(_worst, found))
    return min(
        (s for s in found if s.deviation <= max(ENOUGH, NEARLY_BEST * least)), key=lambda s: (s.empty, s.deviation)
    )


def _worst(slots: RotarySlots) -> float:
    return slots.deviation


def _ramps(plain: Rope, wanted: np.ndarray, last: float, empty: int) -> Iterator[Rope]:
    """YaRN's ramps that begin about where `wanted` leaves `plain`, and after which its last frequency is met."""
    step = log(plain.base) / plain.pairs
    factor = last / np.exp(empty * step)
    changed = np.flatnonzero(np.abs(plain.frequencies()[: len(wanted)] / wanted - 1) > 1e-6)
    start = int(changed[0]) if len(changed) else 0
    for pair in range(max(0, start - 2), start + 4):
        for place in PLACES:
            context = round(2 * np.pi * Yarn.beta_fast * np.exp((pair + place) * step))
            if factor >= SMALLEST_FACTOR and context < LONGEST:
                yield replace(plain, factor=factor, yarn=Yarn(context))


def _filled(rope: Rope, wanted: np.ndarray) -> RotarySlots:
    """Each of `wanted` in a slot of `rope`, faster in faster, by the least sum of squared deviations."""
    offered = rope.frequencies()
    order, places = (np.argsort(-values, kind="stable") for values in (wanted, offered))
    distances = np.abs(wanted[order, None] - offered[places])
    sums = np.zeros(rope.pairs + 1)  # of the pairs so far, in the first n slots
    ways = []
    for row in distances:
        way = np.concatenate([[np.inf], sums[:-1] + np.square(row)])
        ways.append(way)
        sums = np.minimum.accumulate(way)
    holds, end = [EMPTY] * rope.pairs, rope.pairs
    for pair, way in zip(order[::-1], ways[::-1], strict=True):
        end = int(way[: end + 1].argmin()) - 1
        holds[places[end]] = int(pair)
    return RotarySlots(rope, tuple(holds), tuple(wanted.tolist()))
