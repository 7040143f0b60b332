"""The methods and metrics by name: which projections share components, and where the components come from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """`groups` are the roles that are stacked and share one basis; `random` replaces that basis by a random one.

    The groups that `across_layers` names stack several layers, as the plan says which; those that `across_experts`
    names, all experts of a layer, or, `by_use`, those that are used most and the others apart.
    """

    groups: tuple[str, ...]
    random: bool
    summary: str
    across_layers: tuple[str, ...] = ()
    across_experts: tuple[str, ...] = ()
    by_use: bool = False


SHARED_KV = ("q", "kv", "o", "gate", "up", "down")

METHODS = {
    "shared-kv": Method(SHARED_KV, False, "k and v stacked, one PCA for both; all others alone"),
    "separate": Method(("q", "k", "v", *SHARED_KV[2:]), False, "a PCA for each projection"),
    "shared-gate-up": Method(
        ("q", "kv", "o", "gate+up", "down"), False, "as shared-kv; gate and up, which read the same, stacked, too"
    ),
    "shared-experts": Method(
        ("q", "kv", "o", "gate+up", "down"),
        False,
        "as shared-gate-up; gate and up of all experts of a layer, which read the same, in one stack",
        across_experts=("gate+up",),
    ),
    "shared-experts-by-use": Method(
        ("q", "kv", "o", "gate+up", "down"),
        False,
        "as shared-experts; a stack for the fewest experts that half of the calibration's tokens are routed to, one for the others",
        across_experts=("gate+up",),
        by_use=True,
    ),
    "cross-layer": Method(
        SHARED_KV,
        False,
        "k and v of the layers that `group_layers` puts together, one PCA for all; others alone",
        ("kv",),
    ),
    "random": Method(SHARED_KV, True, "the control: a random subspace of the rank that shared-kv would use"),
}

METRICS = {
    "weights": "every direction counts alike",
    "inputs": "an input direction counts by its second moment over the calibration text",
    "attention": "also by the attention that tokens receive, and an output direction by what reads it",
}
