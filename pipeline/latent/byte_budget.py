"""How many numbers to cache, and as which type, for a share of the source's bytes: what is predicted to lose least.

A latent of rank r loses the energy of the components that it leaves out, and each number that it keeps is rounded. With
the scales of `equalise.py` a block whose numbers have energies e and costs c loses noise / n (sum_i sqrt(c_i e_i))^2,
noise being the type's mean square error of numbers of mean square 1. Both are in nats, as the metric is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.errors import UsageError
from pipeline.gguf_file.encode import as_stored
from pipeline.latent.equalise import pair_energies
from pipeline.latent.layer import align_layer
from pipeline.latent.plan import BLOCK, CacheLayout, LatentPlan, bits_per_number, choose_layout
from pipeline.latent.source import LatentSource
from pipeline.layers import Layer

KINDS = ("f16", "q8_0", "q5_0", "iq4_nl")  # of each size the type that rounds least
DISTANCES = 512  # that attention is taken to span evenly: what it really spans is measured only after the choice


@cache
def relative_noise(kind: str) -> float:
    """The mean square error of rounding numbers of mean square 1 to this type: normal ones, 0.007 for iq4_nl."""
    values = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    return float(np.square(as_stored(values, GGMLQuantizationType[kind.upper()]) - values).mean())


def choose_within_bytes(plan: LatentPlan, source: LatentSource, layers: Iterable[Layer]) -> LatentPlan:
    """`plan` with the numbers and the type that `plan.cache_bytes` of the source's F16 cache pay for.

    Raises as `affordable_plans` does.
    """
    choices = affordable_plans(plan, source)
    losses = sum((predicted_losses(choices, source, layer) for layer in layers), np.zeros(len(choices)))
    return choices[int(losses.argmin())]


def affordable_plans(plan: LatentPlan, source: LatentSource) -> list[LatentPlan]:
    """`plan` with as many numbers of each type as `plan.cache_bytes` pay for; UsageError where the smallest does not fit."""
    assert plan.cache_bytes is not None
    choices = []
    for kind in KINDS:
        paid = int(plan.cache_bytes * source.cached_numbers * 16 / bits_per_number(kind))
        numbers = min(paid, source.cached_numbers) // BLOCK * BLOCK
        if numbers >= 2 * BLOCK:
            choices.append(replace(plan, cache=numbers, cache_type=kind, cache_bytes=None))
    if not choices:
        least = 2 * BLOCK * min(map(bits_per_number, KINDS)) / 16 / source.cached_numbers
        problem = (
            f"too little for {2 * BLOCK} numbers per token and layer; expected at least {np.ceil(least * 1e3) / 1e3:g}"
        )
        raise UsageError.of("cache_bytes", plan.cache_bytes, problem)
    return choices


def predicted_losses(plans: Sequence[LatentPlan], source: LatentSource, layer: Layer) -> np.ndarray:
    """The nats a token that one layer's latent is predicted to cost by each plan, (n,), before anything is refitted."""
    layouts = [choose_layout(plan, source) for plan in plans]
    alike = {(layout.pairs, layout.position_apart): layout for layout in layouts}
    found = {key: _sizes(source, layer, layout) for key, layout in alike.items()}
    losses = []
    for plan, layout in zip(plans, layouts, strict=True):
        sizes, rotary = found[layout.pairs, layout.position_apart]
        left_out = float(np.square(sizes[layout.rank :]).sum())
        rounded = float(sizes[: layout.rank].sum()) ** 2 / layout.rank + rotary
        losses.append(left_out + relative_noise(plan.cache_type) * rounded)
    return np.array(losses)


def _sizes(source: LatentSource, layer: Layer, layout: CacheLayout) -> tuple[np.ndarray, float]:
    """The sizes of a layer's components, (n,), squares in nats, and what the noise of its rotary numbers costs, per unit."""
    aligned = align_layer(source, layer, layout, np.ones((source.heads, DISTANCES)))
    queries = source.by_head(layer, "q").astype(np.float64)
    keys, reads = pair_energies(aligned.rotary_key, aligned.rotary_query, queries, layer.moments("k").inputs)
    rotary = 2 * aligned.key_cost * float(np.sqrt(keys * reads).sum()) ** 2 / layout.pairs
    return np.linalg.svd(aligned.metric.weigh(aligned.rows), compute_uv=False), rotary
