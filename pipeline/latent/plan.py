"""How much to cache, and how it is divided."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from pipeline.cache_types import CACHE_TYPES
from pipeline.choices import check_choices, choice, choices_of
from pipeline.errors import UsageError
from pipeline.gguf_file.encode import OUTTYPES
from pipeline.latent.source import LatentSource
from pipeline.latent.source_rope import LARGEST_DEVIATION

METHOD = "latent"
PUBLISHED = "transmla"
METHODS = {
    METHOD: "bases by what errors were measured to cost, queries and values refitted",
    PUBLISHED: "TransMLA's recipe as published, to compare with, by second moments alone",
}
BLOCK = 32  # numbers in a block of a quantised cache, of which a token's must be a whole number
FEW_BITS = 8  # a number: with fewer, what keeping position apart saves is more than its fit loses far behind


@dataclass(frozen=True)
class LatentPlan:
    """`cache`: a share of the source's cached numbers in (0, 1], or if above 1 how many per token and layer.

    `rotary`: how many of them keep RoPE, an even number; None for a pair at each of the source's frequencies, but not
    more than half of the cache. `cache_type`: that of the KV cache it will run with, whose blocks must come out whole.
    `cache_bytes`: a share of the bytes of the source's F16 cache, which chooses `cache` and `cache_type`.
    Raises UsageError, which names the argument, for what makes no sense.
    """

    method: str = choice(
        METHOD, str, f"How it is made. {'; '.join(f'{name}: {text}' for name, text in METHODS.items())}.", names=METHODS
    )
    cache: float = choice(
        0.5, float, "What to cache: a share of the source's numbers, 0 < S <= 1, rounded down to a multiple of 32 of"
        " them; above 1, how many per token and layer.",
        expected="a share above 0 and at most 1, such as 0.5, or a whole number of numbers per token and layer",
        low=0, above=True,
    )  # fmt: skip
    rotary: int | None = choice(
        None, int, "How many of them keep RoPE.  [default: as many as a head has, at most half]",
        expected="an even number, at least 2", low=2,
    )  # fmt: skip
    outtype: str = choice(
        "auto", str, "Type of the new matrices. auto: the source's if it is a float type, else F16; keep: the source's, whatever it"
        " is, and narrower queries, for a file of about the source's size. All others keep theirs.",
        names=OUTTYPES,
    )  # fmt: skip
    cache_type: str = choice(
        "f16", str, "Type of the KV cache that it will run with, whose blocks must come out whole; give it to run and eval, too.",
        names=CACHE_TYPES,
    )  # fmt: skip
    cache_bytes: float | None = choice(
        None, float, "Instead of --cache and --cache-type: a share of the bytes of the source's F16 cache; numbers and type"
        " are chosen for it by the loss that is predicted.",
        expected="a share above 0 and at most 1, such as 0.15", low=0, above=True, high=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_choices(self)
        for name, wrong in (
            ("cache", self.cache > 1 and self.cache != int(self.cache)),
            ("rotary", self.rotary is not None and self.rotary % 2),
        ):
            if wrong:
                raise UsageError.of(
                    name, getattr(self, name), f"expected {choices_of(LatentPlan)[name][0].expectation}"
                )

        if self.cache_bytes is not None and self.method != METHOD:
            raise UsageError.of(
                "cache_bytes",
                self.cache_bytes,
                f"is a choice by what method {METHOD} loses; give `cache` and `cache_type`",
            )

    @property
    def metric(self) -> str:
        """What it needs of a calibration."""
        return "attention" if self.method == METHOD else "inputs"

    @property
    def roles(self) -> frozenset[str]:
        """Whose errors are weighed against each other by what they were measured to cost."""
        return frozenset("kv" if self.method == METHOD else "")

    @property
    def position_apart(self) -> bool:
        """Whether keys' position is kept apart from their content, see `pipeline.latent.position`."""
        return self.method == METHOD and has_few_bits(self.cache_type)

    @property
    def label(self) -> str:
        """The plan in a few words, whatever is not usual last."""
        rotary = f"rotary {self.rotary}" if self.rotary else ""
        outtype = self.outtype if self.outtype != "auto" else ""
        return " ".join(filter(None, (self.method, f"{self.cache:g}", rotary, outtype)))

    def for_cache(self, cache_type: str) -> "LatentPlan":
        """The plan for a model that runs with this type of KV cache."""
        return replace(self, cache_type=cache_type)

    def effective(self) -> "LatentPlan":
        """With one cache type for all that the same file is made for."""
        return self.for_cache("q4_0" if self.position_apart else "f16")

    def family(self) -> "LatentPlan":
        """The plan itself: nothing is shared with other plans."""
        return self


def bits_per_number(cache_type: str) -> float:
    """Bits of cache for a number, scales of blocks included."""
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[cache_type.upper()]]
    return 8 * size / numbers


def has_few_bits(cache_type: str) -> bool:
    """Whether a latent is made otherwise for a cache of this type than for one of F16."""
    return bits_per_number(cache_type) < FEW_BITS


def latent_plans(choices: Mapping[str, Any]) -> list[LatentPlan]:
    """A plan for each of a grid's `methods` that is one of METHODS, with each of its `caches` and `outtypes`."""
    methods = [method for method in choices["methods"] if method in METHODS]
    return [
        LatentPlan(method=method, cache=cache, outtype=outtype)
        for method, cache, outtype in product(methods, choices["caches"], choices["outtypes"])
    ]


@dataclass(frozen=True)
class CacheLayout:
    """What a token caches in a layer: `rank` numbers of latent, then 2 `pairs` numbers that RoPE rotates.

    features: how many numbers of each head's query the latent's query is made of, see `pipeline.latent.narrow`
    position_apart: whether the keys' position is kept apart from their content, see `pipeline.latent.position`
    """

    rank: int
    pairs: int
    features: int
    position_apart: bool = False

    @property
    def cached_numbers(self) -> int:
        return self.rank + 2 * self.pairs


def choose_layout(plan: LatentPlan, source: LatentSource) -> CacheLayout:
    """Divide what `plan` grants. A share is rounded down to whole blocks of a quantised cache where there is one.

    All of the cache is all that the source's attention reads: more than its own where slots are left empty, or where
    layers without RoPE have no use for them.

    Raises UsageError for more than the source caches, or too little for the rotary numbers and a latent.
    """
    most = len(source.slots.holds)
    if plan.rotary is not None and plan.rotary > 2 * most:
        raise UsageError.of("rotary", plan.rotary, f"the source rotates {2 * most} numbers of a head")
    if plan.cache == 1:
        pairs = plan.rotary // 2 if plan.rotary else most
        numbers = source.all_numbers(pairs)
    else:
        numbers = int(plan.cache)
        if plan.cache < 1:
            numbers = int(plan.cache * source.cached_numbers + 1e-9)
            numbers = numbers // BLOCK * BLOCK or numbers
        usual = most if plan.method == PUBLISHED else max(1, min(most, numbers // 4))
        pairs = plan.rotary // 2 if plan.rotary else usual
    if plan.method == PUBLISHED and pairs < most:
        raise UsageError.of("rotary", 2 * pairs, f"method {PUBLISHED} keeps a pair at each frequency; leave it out")
    if numbers > source.all_numbers(pairs):
        raise UsageError.of(
            "cache", numbers, f"the source caches {source.cached_numbers} numbers per token and layer; take fewer"
        )
    if (off := source.slots.first(pairs).deviation) > LARGEST_DEVIATION:
        raise UsageError.of(
            "rotary", 2 * pairs, f"with so few rotary numbers llama.cpp shortens YaRN's ramp, and frequencies are off by up to"
            f" {off:.2g} radians a token; choose {2 * most}, and a cache of at least twice as many numbers",
        )  # fmt: skip
    rank = min(numbers - 2 * pairs, source.width)
    if rank < 1:
        raise UsageError.of("cache", plan.cache, f"{numbers} numbers leave no latent beside {2 * pairs} rotary ones")
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[plan.cache_type.upper()]]
    if (rank + 2 * pairs) % block:
        raise UsageError.of(
            "cache", plan.cache,
            f"{rank + 2 * pairs} numbers per token and layer are no whole blocks of {plan.cache_type}; choose a multiple of"
            f" {BLOCK}, or the cache type f16",
        )  # fmt: skip
    features = source.head_size
    if plan.outtype == "keep":  # half of them, in whole blocks: the rotary queries are as many numbers again
        features = min(features, (features // 2 + BLOCK - 1) // BLOCK * BLOCK)
    return CacheLayout(rank, pairs, features, plan.position_apart)
