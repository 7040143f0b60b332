"""The subspaces of the input space that a model's layers read: how energy is spread, and how alike layers are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.attention import read_projection
from pipeline.calibration.metrics import group_metric
from pipeline.calibration.statistics_file import Calibration
from pipeline.decompose.principal_components import centre
from pipeline.decompose.subspaces import directions_read, groups_of_alike, overlaps
from pipeline.decompose.weighted import Metric, mean_input_factor
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.groups import Layers


@dataclass(frozen=True)
class View:
    """A model seen under a metric (`weights`, `inputs`, `attention`) with the row mean treated as `mean` says."""

    model: GGUFModel
    layers: Layers
    metric: str
    mean: str
    calibration: Calibration | None

    def metric_of(self, number: int, roles: str) -> Metric | None:
        """The metric of a layer's group such as `kv`; None for the metric `weights`."""
        if self.metric == "weights":
            return None
        assert self.calibration is not None
        return group_metric(self.metric, self.model, self.calibration, self.layers[number], roles)

    def weighted_rows(self, number: int, roles: str) -> tuple[np.ndarray, Metric | None]:
        """The stacked rows of a layer's `roles`, without what the mean takes and weighed under the metric, float64."""
        rows = np.vstack([read_projection(self.model, self.layers[number][role]) for role in roles])
        centred, _ = centre(rows.astype(np.float64), self.mean)
        metric = self.metric_of(number, roles)
        return (centred if metric is None else metric.weigh(centred)), metric


def layer_overlaps(view: View, numbers: Sequence[int], roles: str, ranks: Sequence[int]) -> Iterator[np.ndarray]:
    """For each of `ranks`, how much the leading subspaces of that rank of each pair of layers overlap: (L, L)."""
    spans = [directions_read(*view.weighted_rows(number, roles), max(ranks)) for number in numbers]
    factor = None
    if view.metric != "weights":
        factor = mean_input_factor(metric for number in numbers if (metric := view.metric_of(number, roles)))
    for rank in ranks:
        yield overlaps([span[:, :rank] for span in spans], factor)


def similar_layers(view: View, numbers: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """The layers `numbers` in groups of at most `size` whose k+v read the most similar subspaces, each group ascending.

    Compared at a third of the full rank, about what half of the stored numbers pay for in a layer alone.
    """
    columns = view.layers[numbers[0]]["k"].columns
    rows = min(sum(view.layers[number][role].rows for role in "kv") for number in numbers)
    (similarity,) = layer_overlaps(view, numbers, "kv", [max(min(rows, columns) // 3, 1)])
    return [tuple(numbers[index] for index in group) for group in groups_of_alike(similarity, size)]
