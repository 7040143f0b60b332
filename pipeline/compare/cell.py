"""One cell of a grid: an operation, a quantisation, a type of KV cache; and the key that its measurement has."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline import __version__
from pipeline.decompose.methods import METHODS
from pipeline.latent.plan import LatentPlan
from pipeline.operation.plan import Plan

AS_IT_IS = "source"  # as a quantisation: every tensor keeps the type that it has in the source
CACHE_TYPES = ("f16", "q8_0", "q4_0")
LATENT = "latent"  # among the methods: its plan is a LatentPlan

Operation = Plan | LatentPlan


@dataclass(frozen=True)
class StudySubject:
    """What all cells of a study have in common, by SHA-256; empty where there is no calibration or imatrix."""

    model_sha256: str
    text_sha256: str
    n_ctx: int
    calibration_sha256: str = ""
    importance_sha256: str = ""


@dataclass(frozen=True)
class Cell:
    """`plan` None: the source itself. `quant` AS_IT_IS or a type of llama.cpp's quantiser; `cache_type` for k and v."""

    plan: Operation | None
    quant: str = AS_IT_IS
    cache_type: str = "f16"

    @property
    def method(self) -> str:
        """The operation's method; `none` for the source itself."""
        return LATENT if isinstance(self.plan, LatentPlan) else self.plan.method if self.plan else "none"

    @property
    def calibrated(self) -> bool:
        """Whether the operation needs calibration statistics."""
        return isinstance(self.plan, LatentPlan) or (self.plan is not None and self.plan.metric != "weights")

    @property
    def label(self) -> str:
        """Such as `shared-kv 0.9 attention, Q4_K_M, cache q8_0`; what is usual is left out."""
        cache = f"cache {self.cache_type}" if self.cache_type != "f16" else ""
        quant = "" if self.quant == AS_IT_IS else self.quant
        return ", ".join(filter(None, (plan_label(self.plan) if self.plan else "source", quant, cache)))

    def parameters(self) -> dict[str, Any]:
        """The cell as JSON, from which `Cell.of` makes it again."""
        plan = {"method": self.method, **asdict(self.plan)} if self.plan else None
        return {"plan": plan, "quant": self.quant, "cache_type": self.cache_type}

    @staticmethod
    def of(parameters: dict[str, Any]) -> "Cell":
        choices = dict(parameters["plan"] or {})
        plan: Operation | None = None
        if choices.get("method") == LATENT:
            plan = LatentPlan(**{name: value for name, value in choices.items() if name != "method"})
        elif choices:
            plan = Plan(**choices)
        return Cell(plan, parameters["quant"], parameters["cache_type"])

    def key(self, subject: StudySubject) -> str:
        """The name of this cell's measurement: equal for cells that do the same, such as q alone by two methods."""
        plan = effective_plan(self.plan)
        facts = {
            "version": __version__,
            "subject": asdict(subject)
            | ({} if self.calibrated else {"calibration_sha256": ""})
            | ({"importance_sha256": ""} if self.quant == AS_IT_IS else {}),
            **replace(self, plan=plan).parameters(),
        }
        return sha256_of(facts)


def base_key(subject: StudySubject) -> str:
    """The name of the source's own measurement, with which the cells are compared."""
    return sha256_of(["base", Cell(None).key(subject)])


def plan_label(plan: Operation) -> str:
    """A plan in a few words: its method and rank rule, then whatever is not usual."""
    if isinstance(plan, LatentPlan):
        rotary = f" rotary {plan.rotary}" if plan.rotary else ""
        return f"{LATENT} {plan.cache:g}{rotary}"
    rule = next(
        text
        for text, value in (
            (f"{plan.threshold:g}" if plan.threshold is not None else "", plan.threshold),
            (f"rank {plan.rank}", plan.rank),
            (f"budget {plan.budget}", plan.budget),
        )
        if value is not None
    )
    unusual = (
        f"{plan.targets} only" if plan.targets != "qkv" else "",
        plan.metric if plan.metric != "weights" else "",
        f"mean {plan.mean}" if plan.mean != "keep" else "",
        f"layers {plan.layers}" if plan.layers != "all" else "",
        f"shared by {plan.group_layers}" if plan.group_layers else "",
        f"seed {plan.seed}" if METHODS[plan.method].random and plan.seed else "",
    )
    return " ".join(filter(None, (plan.method, rule, *unusual)))


def effective_plan(plan: Operation | None) -> Operation | None:
    """The plan with what makes no difference set to its default; None when it changes nothing."""
    if isinstance(plan, LatentPlan):
        return plan
    if plan is None or (plan.rank is None and plan.keeps_everything(0)):
        return None
    if not METHODS[plan.method].random:
        plan = replace(plan, seed=0)
        if plan.targets == "q":
            plan = replace(plan, method="shared-kv", group_layers=None)  # the methods differ in what they do to k and v
    return replace(plan, targets="".join(sorted(plan.targets, key="qkv".index)))


def sha256_of(value: Any) -> str:
    """SHA-256, in hex, of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
