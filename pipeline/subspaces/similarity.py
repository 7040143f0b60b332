"""The subspaces of the input space that a model's layers read: how energy is spread, and how alike layers are.

Two things look alike under a metric merely because both see the same inputs, most of whose energy is in few directions.
So whatever is compared is also compared with weights drawn at random, under the same metric.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.attention import read_projection
from pipeline.calibration.metrics import group_metric
from pipeline.calibration.statistics_file import Calibration
from pipeline.decompose.principal_components import centre, explained_variance, ranks_reaching
from pipeline.decompose.subspaces import (
    cumulative_shares,
    directions_read,
    groups_of_alike,
    leading_directions,
    overlaps,
)
from pipeline.decompose.weighted import Metric, mean_input_factor
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.groups import Layers

SPECTRUM_THRESHOLDS = (0.99, 0.95, 0.9, 0.5, 0.3)
SPECTRUM_GROUPS = ("q", "k", "v", "kv")
COMPARED_RANKS = (1 / 24, 1 / 6, 1 / 3, 1 / 2)
"""Of the full rank: at which the subspaces of layers are compared. A third is about what half of the numbers pay for."""


@dataclass(frozen=True)
class View:
    """A model seen under a metric (`weights`, `inputs`, `attention`) with the row mean treated as `mean` says.

    With `random` it has independent normal numbers for weights, the same each time; the metrics remain those of the
    model.
    """

    model: GGUFModel
    layers: Layers
    metric: str
    mean: str
    calibration: Calibration | None
    random: bool = False

    def metric_of(self, number: int, roles: str) -> Metric | None:
        """The metric of a layer's group such as `kv`; None for the metric `weights`."""
        if self.metric == "weights":
            return None
        assert self.calibration is not None
        return group_metric(self.metric, self.model, self.calibration, self.layers[number], roles)

    def weighted_rows(self, number: int, roles: str) -> tuple[np.ndarray, Metric | None]:
        """The stacked rows of a layer's `roles`, without what the mean takes and weighed under the metric, float64."""
        members = [self.layers[number][role] for role in roles]
        rows = np.vstack([read_projection(self.model, projection) for projection in members])
        if self.random:
            rows = np.random.default_rng([number, *roles.encode()]).standard_normal(rows.shape)
        centred, _ = centre(rows.astype(np.float64), self.mean)
        metric = self.metric_of(number, roles)
        return (centred if metric is None else metric.weigh(centred)), metric


def spectra(view: View, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The `spectrum` of every layer; `tell` hears which is done."""
    found = []
    for number in view.layers:
        found.append(spectrum(view, number))
        tell(f"spectrum of layer {number}")
    return found


def overlap(view: View, tell: Callable[[str], None]) -> dict[str, Any]:
    """`within`, the `energies_within` of every layer, and `between`, `compared_layers`; `tell` hears what is done."""
    within = []
    for number in view.layers:
        within.append(energies_within(view, number))
        tell(f"k and v of layer {number}")
    between = compared_layers(view)
    tell("layers compared")
    return {"within": within, "between": between}


def spectrum(view: View, number: int) -> dict[str, Any]:
    """Of a layer, for q, k, v and k+v stacked: shares of the variance explained by rank, and the ranks that
    SPECTRUM_THRESHOLDS need."""
    explained = {roles: explained_variance(view.weighted_rows(number, roles)[0]) for roles in SPECTRUM_GROUPS}
    ranks = {roles: ranks_reaching(shares, SPECTRUM_THRESHOLDS) for roles, shares in explained.items()}
    return {"layer": number, "ranks": ranks, "explained": {roles: _rounded(s) for roles, s in explained.items()}}


def energies_within(view: View, number: int) -> dict[str, Any]:
    """Of a layer, by rank: the shares of v's energy in k's leading directions and of k's in v's, of each in its own, and
    of each in those of random weights."""
    rows = {role: view.weighted_rows(number, role)[0] for role in "kv"}
    directions = {role: leading_directions(own)[0] for role, own in rows.items()}
    directions["random"] = leading_directions(replace(view, random=True).weighted_rows(number, "k")[0])[0]
    shares = {
        f"{role}_in_{of}": _rounded(cumulative_shares(rows[role], leading))
        for role in "vk"
        for of, leading in directions.items()
    }
    return {"layer": number, **shares}


def layer_overlaps(view: View, numbers: Sequence[int], roles: str, ranks: Sequence[int]) -> Iterator[np.ndarray]:
    """For each of `ranks`, how much the leading subspaces of that rank of each pair of layers overlap: (L, L).

    Under a metric as the mean of the layers' inputs sees them.
    """
    spans = [directions_read(*view.weighted_rows(number, roles), max(ranks)) for number in numbers]
    factor = None
    if view.metric != "weights":
        factor = mean_input_factor(metric for number in numbers if (metric := view.metric_of(number, roles)))
    for rank in ranks:
        yield overlaps([span[:, :rank] for span in spans], factor)


def compared_layers(view: View) -> dict[str, Any]:
    """The overlaps of the k+v subspaces of all pairs of layers at several ranks.

    `random` is what random subspaces would have, `random_weights` what random weights would under the same metric.
    """
    numbers, (full_rank, columns) = list(view.layers), _shape(view, list(view.layers))
    ranks = sorted({max(round(share * full_rank), 1) for share in COMPARED_RANKS})
    return {
        "layers": numbers,
        "columns": columns,
        "ranks": ranks,
        "random": [rank / columns for rank in ranks],
        **{
            name: [_rounded(matrix) for matrix in layer_overlaps(seen, numbers, "kv", ranks)]
            for name, seen in (("overlap", view), ("random_weights", replace(view, random=True)))
        },
    }


def similar_layers(view: View, numbers: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """The layers `numbers` in groups of at most `size` whose k+v read the most similar subspaces, each group ascending.

    Compared at a third of the full rank.
    """
    full_rank, _ = _shape(view, numbers)
    (similarity,) = layer_overlaps(view, numbers, "kv", [max(full_rank // 3, 1)])
    return [tuple(numbers[index] for index in group) for group in groups_of_alike(similarity, size)]


def mean_of_pairs(matrix: Sequence[Sequence[float]], distance: int | None = None) -> float:
    """The mean of a symmetric matrix (L, L) over pairs, all or those at a `distance`; 1 where there is none."""
    overlap = np.array(matrix)
    values = overlap[np.triu_indices(len(overlap), 1)] if distance is None else np.diagonal(overlap, distance)
    return float(values.mean()) if values.size else 1.0


def _shape(view: View, numbers: Sequence[int]) -> tuple[int, int]:
    """The full rank that k+v have in every layer, and the width of the inputs."""
    columns = view.layers[numbers[0]]["k"].columns
    return min(columns, *(sum(view.layers[number][role].rows for role in "kv") for number in numbers)), columns


def _rounded(shares: np.ndarray) -> list[Any]:
    """Shares as JSON holds them: lists, to six digits."""
    return np.round(shares, 6).tolist()
