"""The methods and metrics by name: which projections share components, and where the components come from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """`groups` are the roles that are stacked and share one basis; `random` replaces that basis by a random one.

    The groups that `across_layers` names stack several layers, as the plan says which.
    """

    groups: tuple[str, ...]
    random: bool
    summary: str
    across_layers: tuple[str, ...] = ()


METHODS = {
    "shared-kv": Method(("q", "kv"), False, "q alone; k and v stacked, one PCA for both"),
    "separate": Method(("q", "k", "v"), False, "a PCA for each of q, k and v"),
    "cross-layer": Method(
        ("q", "kv"), False, "q alone; k and v of the layers that `group_layers` puts together, one PCA for all", ("kv",)
    ),
    "random": Method(("q", "kv"), True, "the control: a random subspace of the rank that shared-kv would use"),
}

METRICS = {
    "weights": "every direction counts alike",
    "inputs": "an input direction counts by its second moment over the calibration text",
    "attention": "also by the attention that tokens receive, and an output direction by what attention does with it",
}
