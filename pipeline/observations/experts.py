"""What experts are given, of which each sees a few of the tokens: moments as far as there are any, and who saw none."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from pipeline.attention import number_ranges
from pipeline.observations.moments import LayerMoments
from pipeline.observations.statistics_file import Calibration
from pipeline.projection import Projection


def moments_of(calibration: Calibration, projection: Projection) -> LayerMoments:
    """Moments of what a projection is multiplied with.

    An expert's own where they were observed, of at least as many tokens as it has inputs: fewer say nothing about most
    directions. Else gate and up have those of what all experts of the layer are given, each feature brought to the mean
    square that it has in what is routed to this one; down, whose inputs are features of the expert's own, has their mean
    squares alone. An expert that no token was routed to has the layer's as they are, and for down all inputs alike.
    Raises SurgeryError for what was not observed.
    """
    number, expert = projection.layer, projection.block.expert
    if expert is None or _has_own(calibration, projection):
        return calibration.layer(number, projection.input)
    squares = calibration.mean_squares(projection.tensor, expert)
    if projection.role == "down":
        where = f"{calibration.origin.model_name}: {projection.block} of layer {number}"
        return LayerMoments(np.zeros_like(squares), squares, None, 0, "norm", where)
    together = calibration.layer(number, projection.family_input)
    if not _tokens(calibration, projection):
        return together
    scale = np.sqrt(squares / np.maximum(np.diag(together.inputs), np.finfo(float).tiny))
    return replace(together, mean=together.mean * scale, inputs=together.inputs * np.outer(scale, scale))


def _has_own(calibration: Calibration, projection: Projection) -> bool:
    observed = calibration.observed(projection.layer, projection.input)
    return observed and _tokens(calibration, projection) >= projection.columns


def _tokens(calibration: Calibration, projection: Projection) -> float:
    return float(calibration.routed(projection.tensor)[projection.block.expert or 0])


def share_of_tokens(calibration: Calibration, projection: Projection) -> float:
    """Of what is routed to all experts of a layer, the share of one; as if each had been given one token more."""
    counts = calibration.routed(projection.tensor) + 1
    return float(counts[projection.block.expert or 0] / counts.sum())


def expert_notes(calibration: Calibration, blocks: Iterable[Mapping[str, Projection]]) -> tuple[str, ...]:
    """What there is to know of the statistics of experts among feed-forward blocks: who saw no token, how many too few."""
    unseen: dict[tuple[str, int], list[int]] = {}
    few, count = 0, 0
    for projections in blocks:
        down = projections["down"]
        if down.block.expert is None:
            continue
        count += 1
        if not _tokens(calibration, down):
            unseen.setdefault((down.block.family, down.layer), []).append(down.block.expert)
        elif not all(_has_own(calibration, projection) for projection in projections.values()):
            few += 1
    layers: dict[tuple[str, str], list[int]] = {}  # many may lack the same experts
    for (family, layer), experts in unseen.items():
        layers.setdefault((family, number_ranges(experts)), []).append(layer)
    notes = []
    if layers:
        who = "; ".join(f"{family} {numbers} of layers {number_ranges(of)}" for (family, numbers), of in layers.items())
        notes.append(f"no token was routed to {who}: taken to be given what the layer's experts are on the whole")
    if few:
        notes.append(
            f"{few:,} of {count:,} experts have too few tokens, or are too many, for second moments of their own: those of"
            " what the layer's experts are given, scaled to the mean squares of what is routed to each"
        )
    return tuple(notes)
