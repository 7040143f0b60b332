"""Ranks for a budget: which layers and groups the stored numbers are worth most in."""

from collections.abc import Sequence

from pipeline.attention import Projection
from pipeline.calibration.statistics_file import Calibration
from pipeline.decompose.budget import spread_budget
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.plan import Plan, groups_with_targets, targets_in
from pipeline.operation.reconstruct import decompose_group


def budgeted_ranks(
    model: GGUFModel, layers: Sequence[dict[str, Projection]], plan: Plan, calibration: Calibration | None
) -> dict[tuple[int, str], int]:
    """The rank of each group of each layer, by layer and group, that keeps `plan.budget` of the stored numbers.

    The damage that a component saves is its energy: under the metric `attention` in nats, under others, which know no
    unit that layers share, as a share of its group's. A layer is decomposed here and
    again when it is rebuilt, so that only one is held at a time.
    """
    assert plan.budget is not None
    keys, damages, costs, dense = [], [], [], 0
    for layer in layers:
        for group in groups_with_targets(plan):
            components = decompose_group(model, layer, group, plan, calibration).components
            rows = sum(layer[role].rows for role in targets_in(group, plan))
            columns = layer[group[0]].columns
            keys.append((layer[group[0]].layer, group))
            whole = 1.0 if plan.metric == "attention" else components.total or 1.0
            damages.append(components.energies[: components.full_rank] / whole)
            costs.append(rows + columns)
            dense += rows * columns
    means = sum(layer[group[0]].columns for layer in layers for group in groups_with_targets(plan))
    numbers = plan.budget * dense - (means if plan.mean == "keep" else 0)
    return dict(zip(keys, spread_budget(damages, costs, numbers), strict=True))
