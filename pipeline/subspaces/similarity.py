"""The subspaces of the input space that a model's layers read: how energy is spread, and how alike layers are.

Two things look alike under a metric merely because both see the same inputs, most of whose energy is in few directions.
So whatever is compared is also compared with weights drawn at random, under the same metric.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.calibration.metrics import layer_metric
from pipeline.decompose.principal_components import centre, explained_variance, ranks_reaching
from pipeline.decompose.subspaces import (
    cumulative_shares,
    directions_read,
    groups_of_alike,
    leading_directions,
    overlaps,
)
from pipeline.decompose.weighted import Metric, mean_input_factor
from pipeline.layers import AttentionLayers, Layer
from pipeline.projection import stack_name, stacks
from pipeline.targets import QKV

SPECTRUM_THRESHOLDS = (0.99, 0.95, 0.9, 0.5, 0.3)
SPECTRUM_GROUPS = ("q", "k", "v", "kv", "o", "gate", "up", "gate+up", "down")
COMPARED_RANKS = (1 / 24, 1 / 6, 1 / 3, 1 / 2)
"""Of the full rank: at which the subspaces of layers are compared. A third is about what half of the numbers pay for."""


@dataclass(frozen=True)
class Lens:
    """A model's layers as a metric (`weights`, `inputs`, `attention`) sees them, the row mean treated as `mean` says.

    With `random` they have independent normal numbers for weights, the same each time; the metrics remain those of the
    model.
    """

    layers: AttentionLayers
    metric: str
    mean: str
    random: bool = False

    def weighted_rows(self, layer: Layer, roles: Sequence[str]) -> tuple[np.ndarray, Metric | None]:
        """The stacked rows of a layer's `roles`, without what the mean takes and weighed under the metric, float64."""
        rows = layer.stacked(roles)
        if self.random:
            rows = np.random.default_rng([layer.number, *"".join(roles).encode()]).standard_normal(rows.shape)
        centred, _ = centre(rows.astype(np.float64), self.mean)
        metric = layer_metric(self.metric, layer, roles)
        return (centred if metric is None else metric.weigh(centred)), metric


def spectra(lens: Lens, tell: Callable[[str], None], roles: Collection[str] = QKV) -> list[dict[str, Any]]:
    """The `spectrum` of every layer that has any of the `roles`; `tell` hears which is done."""
    found = []
    for number, layer in lens.layers.items():
        if (of_layer := spectrum(lens, layer, roles))["ranks"]:
            found.append(of_layer)
        tell(f"spectrum of layer {number}")
    return found


def overlap(lens: Lens, tell: Callable[[str], None]) -> dict[str, Any]:
    """`within`, the `energies_within` of every layer, and `between`, `compared_layers`; `tell` hears what is done."""
    within = []
    for number, layer in lens.layers.items():
        within.append(energies_within(lens, layer))
        tell(f"k and v of layer {number}")
    between = compared_layers(lens)
    tell("layers compared")
    return {"within": within, "between": between}


def spectrum(lens: Lens, layer: Layer, roles: Collection[str] = QKV) -> dict[str, Any]:
    """Of a layer, for each of SPECTRUM_GROUPS among `roles`, members of TARGETS: shares of the variance explained by rank,
    and the ranks that SPECTRUM_THRESHOLDS need.

    Of experts they are means over a layer's, and `expert_ranks` has those of each.
    """
    curves = dict(_explained(lens, layer, roles))
    each: dict[str, list[np.ndarray]] = {}
    for block in lens.layers.beside.get(layer.number, {}):
        for name, shares in _explained(lens, lens.layers.block(layer.number, block), roles):
            each.setdefault(f"{name}.{block.family}", []).append(shares)
    curves |= {name: np.mean(shares, axis=0) for name, shares in each.items()}
    experts = {
        name: [ranks_reaching(shares, SPECTRUM_THRESHOLDS) for shares in found]
        for name, found in each.items()
        if len(found) > 1
    }
    ranks = {name: ranks_reaching(shares, SPECTRUM_THRESHOLDS) for name, shares in curves.items()}
    ranks |= {name: np.rint(np.mean(found, axis=0)).astype(int).tolist() for name, found in experts.items()}
    explained = {name: _rounded(shares) for name, shares in curves.items()}
    return {"layer": layer.number, "ranks": ranks, "explained": explained} | (
        {"expert_ranks": experts} if experts else {}
    )


def _explained(lens: Lens, layer: Layer, roles: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """What is stacked of a layer, or of a block beside it, by its name, with the shares of the variance by rank."""
    found = [stack for name in SPECTRUM_GROUPS for stack in stacks(layer.projections, name)]
    for stack in dict.fromkeys(found):
        if all(layer.projections[role].is_target(roles) for role in stack):
            yield stack_name(stack), explained_variance(lens.weighted_rows(layer, stack)[0])


def energies_within(lens: Lens, layer: Layer) -> dict[str, Any]:
    """Of a layer, by rank: the shares of v's energy in k's leading directions and of k's in v's, of each in its own, and
    of each in those of random weights."""
    rows = {role: lens.weighted_rows(layer, role)[0] for role in "kv"}
    directions = {role: leading_directions(own)[0] for role, own in rows.items()}
    directions["random"] = leading_directions(replace(lens, random=True).weighted_rows(layer, "k")[0])[0]
    shares = {
        f"{role}_in_{of}": _rounded(cumulative_shares(rows[role], leading))
        for role in "vk"
        for of, leading in directions.items()
    }
    return {"layer": layer.number, **shares}


def layer_overlaps(lens: Lens, numbers: Sequence[int], roles: str, ranks: Sequence[int]) -> Iterator[np.ndarray]:
    """For each of `ranks`, how much the leading subspaces of that rank of each pair of layers overlap: (L, L).

    Under a metric as the mean of the layers' inputs sees them.
    """
    spans = []

    def metrics() -> Iterator[Metric]:
        for number in numbers:
            rows, metric = lens.weighted_rows(lens.layers[number], roles)
            spans.append(directions_read(rows, metric, max(ranks)))
            if metric is not None:
                yield metric

    factor = mean_input_factor(metrics())
    for rank in ranks:
        yield overlaps([span[:, :rank] for span in spans], factor)


def compared_layers(lens: Lens) -> dict[str, Any]:
    """The overlaps of the k+v subspaces of all pairs of layers at several ranks.

    `random` is what random subspaces would have, `random_weights` what random weights would under the same metric.
    """
    numbers, (full_rank, columns) = list(lens.layers), _shape(lens, list(lens.layers))
    ranks = sorted({max(round(share * full_rank), 1) for share in COMPARED_RANKS})
    return {
        "layers": numbers,
        "columns": columns,
        "ranks": ranks,
        "random": [rank / columns for rank in ranks],
        **{
            name: [_rounded(matrix) for matrix in layer_overlaps(seen, numbers, "kv", ranks)]
            for name, seen in (("overlap", lens), ("random_weights", replace(lens, random=True)))
        },
    }


def similar_layers(lens: Lens, numbers: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """The layers `numbers` in groups of at most `size` whose k+v read the most similar subspaces, each group ascending.

    Compared at a third of the full rank.
    """
    full_rank, _ = _shape(lens, numbers)
    (similarity,) = layer_overlaps(lens, numbers, "kv", [max(full_rank // 3, 1)])
    return [tuple(numbers[index] for index in group) for group in groups_of_alike(similarity, size)]


def mean_of_pairs(matrix: Sequence[Sequence[float]], distance: int | None = None) -> float:
    """The mean of a symmetric matrix (L, L) over pairs, all or those at a `distance`; 1 where there is none."""
    overlap = np.array(matrix)
    values = overlap[np.triu_indices(len(overlap), 1)] if distance is None else np.diagonal(overlap, distance)
    return float(values.mean()) if values.size else 1.0


def _shape(lens: Lens, numbers: Sequence[int]) -> tuple[int, int]:
    """The full rank that k+v have in every layer, and the width of the inputs."""
    columns = lens.layers.projections[numbers[0]]["k"].columns
    return min(
        columns, *(sum(lens.layers.projections[number][role].rows for role in "kv") for number in numbers)
    ), columns


def _rounded(shares: np.ndarray) -> list[Any]:
    """Shares as JSON holds them: lists, to six digits."""
    return np.round(shares, 6).tolist()
