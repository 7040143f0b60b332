"""Which layers share components: what `group_layers` means for the layers of a model."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.attention import parse_layers
from pipeline.decompose.methods import METHODS
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.layers import AttentionLayers
from pipeline.operation.groups import plan_groups
from pipeline.operation.plan import BY_SHARING, Plan, idle_method, simpler_method
from pipeline.subspaces.similarity import Lens, similar_layers


def layer_groups(layers: AttentionLayers, chosen: Sequence[int], plan: Plan) -> list[tuple[int, ...]]:
    """The `chosen` layers, each once, in groups that share components under `plan`: each alone where it has no such choice.

    `N` puts N neighbours together, `all` all, `stride:N` those that are N apart, `similar:N` at most N whose k+v read
    the most similar subspaces; a list such as 0-9/10,12 says it outright, and layers that it leaves out stay alone.
    Raises UsageError for a number that exceeds that of the layers, and a list that names a layer twice or one not
    operated on.
    """
    text = plan.group_layers
    if text is None:
        return [(number,) for number in chosen]
    if text == "all":
        return [tuple(chosen)]
    kind, _, digits = text.rpartition(":")
    if not digits.isdigit():
        return _listed(text, layers, chosen)
    size = int(digits)
    if size > len(chosen):
        raise UsageError.of("group_layers", text, f"{len(chosen)} layers are operated on")
    if kind == "similar":
        return similar_layers(Lens(layers, plan.metric, plan.mean), chosen, size)
    if kind == "stride":
        return [tuple(chosen[start::size]) for start in range(size)]
    return [tuple(chosen[start : start + size]) for start in range(0, len(chosen), size)]


def check_plan(model: GGUFModel, plan: Plan) -> None:
    """Raise UsageError for layers that the model does not have, ranks that are too large, and a method that shares nothing
    in this model that a simpler one does not share; before anything takes long.

    The default method is not held to that, nor one that shares nothing of such targets in any model: see `check_method`.
    """
    layers = AttentionLayers(model, roles=plan.roles)
    chosen = parse_layers(plan.layers, layers, skipped=layers.skipped)
    neighbours = replace(plan, group_layers=plan.group_layers and plan.group_layers.removeprefix("similar:"))
    groups = plan_groups(layers, layer_groups(layers, chosen, neighbours), plan)
    if plan.method == Plan.method or METHODS[plan.method].random or simpler_method(plan.method, plan.roles):
        return
    each = [(number,) for number in chosen]
    for name in BY_SHARING[: BY_SHARING.index(plan.method)]:
        if METHODS[plan.method].by_use and METHODS[name].across_experts:
            continue  # what sets them apart is in statistics
        if plan_groups(layers, each, replace(plan, method=name, group_layers=None)) == groups:
            by = f" by `group_layers` {plan.group_layers}" if plan.group_layers else ""
            raise idle_method(plan.method, f"{plan.targets} of {model.name}{by}", name)


def _listed(text: str, layers: AttentionLayers, chosen: Sequence[int]) -> list[tuple[int, ...]]:
    groups = [tuple(parse_layers(part, layers, "group_layers")) for part in text.split("/")]
    named = [number for group in groups for number in group]
    if others := set(named) - set(chosen):
        raise UsageError.of("group_layers", text, f"layer {min(others)} is not among `layers`")
    if twice := [number for number in named if named.count(number) > 1]:
        raise UsageError.of("group_layers", text, f"layer {twice[0]} is in two groups")
    return sorted([*groups, *((number,) for number in chosen if number not in named)])


def written_groups(groups: Sequence[tuple[int, ...]]) -> str:
    """The list that `group_layers` takes, such as 0,1/2,3."""
    return "/".join(",".join(map(str, group)) for group in groups)
