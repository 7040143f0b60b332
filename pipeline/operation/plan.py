"""What to do to a model: the choices of one low-rank operation, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pipeline.choices import check_choices, choice
from pipeline.decompose.methods import METHODS, METRICS, Method
from pipeline.decompose.principal_components import MEANS
from pipeline.errors import UsageError
from pipeline.gguf_file.encode import OUTTYPES
from pipeline.projection import STACKS
from pipeline.targets import EXPECTED, parse_targets, settled_targets, target_roles

DEFAULT_THRESHOLD = 0.9
LARGEST_SEED = 2**32 - 1
MOST = 2**31 - 1  # llama.cpp counts in 32 bits
BY_SHARING = ("separate", *METHODS)  # the least first
RANK_RULES = ("threshold", "rank", "budget")
GROUP_LAYERS = (
    "N for N neighbours, all, stride:N for every Nth, similar:N for N alike, or a list such as 0-9/10-19/20,22"
)


@dataclass(frozen=True)
class Plan:
    """What to do to a model. One of `threshold` (0 < T <= 1), `rank` (>= 1) and `budget` (0 < B <= 1) says how much stays.

    Without any of them it is DEFAULT_THRESHOLD. `budget` is the share of stored numbers that remains, spread over
    layers and groups. A metric other than `weights` needs calibration statistics, which are not part of the plan.
    `group_layers`, see `pipeline.operation.layer_groups`, is set for the methods that share components between layers,
    and for no other. Raises UsageError, which names the argument, for what makes no sense.
    """

    method: str = choice(
        "shared-kv",
        str,
        "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()) + ".",
        names=METHODS,
    )
    targets: str = choice(
        "qkv", str, "Which projections to replace: q, k, v, o, gate, up, down, such as kv or q,o,up; or attention, ffn,"
        " all.",
        expected=EXPECTED, pattern=r"[a-z,+\s]+",
    )  # fmt: skip
    threshold: float | None = choice(
        None, float, "Share of the variance to keep, 0 < T <= 1; 1 leaves every byte alone."
        f"  [default: {DEFAULT_THRESHOLD}]",
        expected="a share of the variance above 0 and at most 1, such as 0.9", low=0, high=1, above=True,
    )  # fmt: skip
    rank: int | None = choice(
        None,
        int,
        "Components to keep, instead of a threshold.",
        expected=f"a whole number from 1 to {MOST}",
        low=1,
        high=MOST,
    )
    budget: float | None = choice(
        None, float, "Share of the stored numbers to keep, 0 < B <= 1, spread over layers where it helps most, instead"
        " of a threshold; what would save too little is left whole.",
        expected="a share of the stored numbers above 0 and at most 1, such as 0.5", low=0, high=1, above=True,
    )  # fmt: skip
    metric: str = choice(
        "weights", str, f"How much a direction counts. {'; '.join(f'{n}: {text}' for n, text in METRICS.items())}.",
        names=METRICS,
    )  # fmt: skip
    mean: str = choice(
        "keep", str, "keep: PCA, the mean is added back; none: not centred; drop: centred, the mean is lost (even at"
        " threshold 1).",
        names=MEANS,
    )  # fmt: skip
    layers: str = choice("all", str, "Layers to operate on, such as 0-10,12.")
    group_layers: str | None = choice(
        None, str, f"Which layers share components, for method cross-layer: {GROUP_LAYERS}.",
        expected=GROUP_LAYERS, metavar="GROUPS",
        pattern=r"all|(stride:|similar:)?0*[1-9]\d*|(?!0+$)\d[\d,\s-]*(/\s*\d[\d,\s-]*)*",
    )  # fmt: skip
    outtype: str = choice(
        "auto", str, "Type of the replaced tensors. auto: a float type stays, a quantised one becomes F16; keep: the"
        " tensor's own.",
        names=OUTTYPES,
    )  # fmt: skip
    seed: int = choice(
        0, int, "Seed of the random control.", expected=f"a whole number from 0 to {LARGEST_SEED}", low=0,
        high=LARGEST_SEED,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):  # q,k is as good as qk
            object.__setattr__(self, "targets", "+".join(parse_targets(self.targets)))
        rules = [name for name in RANK_RULES if getattr(self, name) is not None]
        if len(rules) > 1:
            raise UsageError("give one of `threshold`, `rank` and `budget`", argument=rules[1])
        if not rules:
            object.__setattr__(self, "threshold", DEFAULT_THRESHOLD)
        check_choices(self)
        across = METHODS[self.method].across_layers
        if self.group_layers is None and across:
            raise UsageError.of("method", self.method, f"needs `group_layers`: {GROUP_LAYERS}")
        if self.group_layers is not None and not across:
            raise UsageError.of(
                "group_layers", self.group_layers, f"`method={self.method!r}` shares nothing between layers"
            )
        if METHODS[self.method].by_use and self.metric == "weights":
            raise UsageError.of(
                "method", self.method, "needs `metric` inputs or attention: statistics say how often an expert is used"
            )
        if self.seed and not METHODS[self.method].random:
            raise UsageError.of("seed", self.seed, f"`method={self.method!r}` draws nothing at random")

    def keeps_everything(self, full_rank: int) -> bool:
        """Whether a group that has `full_rank` components loses nothing, so that its bytes can stay as they are."""
        if self.mean == "drop":
            return False
        return self.rank >= full_rank if self.rank is not None else 1 in (self.threshold, self.budget)

    @property
    def roles(self) -> frozenset[str]:
        """The targets by their own names."""
        return target_roles(self.targets)

    @property
    def label(self) -> str:
        """The plan in a few words: its method and rank rule, then whatever is not usual."""
        rule = next(name for name in RANK_RULES if getattr(self, name) is not None)
        value = f"{self.threshold:g}" if rule == "threshold" else f"{rule} {getattr(self, rule)}"
        unusual = (
            "" if self.targets == "qkv" else "all targets" if self.targets == "all" else f"{self.targets} only",
            self.metric if self.metric != "weights" else "",
            f"mean {self.mean}" if self.mean != "keep" else "",
            f"layers {self.layers}" if self.layers != "all" else "",
            f"shared by {self.group_layers}" if self.group_layers else "",
            f"seed {self.seed}" if METHODS[self.method].random and self.seed else "",
        )
        return " ".join(filter(None, (self.method, value, *unusual)))

    def for_cache(self, cache_type: str) -> "Plan":
        """The plan itself, whatever the type of the KV cache."""
        return self

    def effective(self) -> "Plan | None":
        """The plan with what makes no difference set to its default; None when it changes nothing."""
        if self.rank is None and self.keeps_everything(0):
            return None
        plan = replace(self, targets=settled_targets(self.targets))
        if METHODS[plan.method].random:
            return plan
        mine = _touched(METHODS[plan.method], plan.roles)  # methods differ in these alone
        same = next(name for name, method in METHODS.items() if _touched(method, plan.roles) == mine)
        groups = plan.group_layers if METHODS[same].across_layers else None
        return replace(plan, method=same, group_layers=groups)

    def family(self) -> "Plan":
        """A plan that is equal for all plans which one decomposition serves."""
        return replace(self, threshold=1.0, rank=None, budget=None)


def simpler_method(method: str, roles: frozenset[str]) -> str | None:
    """The simplest method that does the same to the targets `roles` of any model, unless it is `method` itself."""
    if METHODS[method].random:
        return None
    mine = _touched(METHODS[method], roles)
    same = next(name for name in BY_SHARING if _touched(METHODS[name], roles) == mine)
    return same if same != method else None


def check_method(plan: Plan, *, chosen: bool) -> None:
    """Raise UsageError for a method that was `chosen`, not the default, and shares nothing of the plan's targets."""
    if chosen and (same := simpler_method(plan.method, plan.roles)):
        raise idle_method(plan.method, f"the targets {plan.targets}", same)


def idle_method(method: str, what: str, same: str, argument: str = "method") -> UsageError:
    """Of a method that does to `what` what the method `same` does, and says so by its name."""
    return UsageError.of(argument, method, f"does to {what} what {same} does; take that, or other targets")


def _touched(method: Method, roles: frozenset[str]) -> list[tuple[str, bool, bool, bool]]:
    """The groups of a method that have any of the roles, and whether they span layers, or experts, all or by their use."""
    groups = [group for group in method.groups if any(roles & set(stack) for stack in STACKS[group])]
    layers, experts = method.across_layers, method.across_experts
    return [(group, group in layers, group in experts, method.by_use and group in experts) for group in groups]


def low_rank_plans(choices: Mapping[str, Any]) -> list[Plan]:
    """All combinations of a grid's `choices`, such as `thresholds`. Raises UsageError for a value that no plan can have."""
    methods = [method for method in choices["methods"] if method in METHODS]
    rules = [{rule: value} for rule in RANK_RULES for value in choices[f"{rule}s"]]
    return [
        Plan(
            method=method, targets=targets, metric=metric, mean=mean, seed=seed,
            layers=choices["layers"], group_layers=groups, **rule,
        )
        for method, targets, metric, mean, rule in product(
            methods, choices["targets"], choices["metrics"], choices["means"], rules
        )
        for seed in (choices["seeds"] if METHODS[method].random else (0,))
        for groups in (choices["group_layers"] if METHODS[method].across_layers else ()) or (None,)
    ]  # fmt: skip
