"""Latent attention for one layer: keys aligned over heads, some of them rotated, the rest and the values compressed."""

from dataclasses import dataclass

import numpy as np

from pipeline.calibration.metrics import attention_metric
from pipeline.calibration.output_blocks import output_blocks
from pipeline.decompose.attention_metric import energy
from pipeline.decompose.weighted import Metric
from pipeline.errors import SurgeryError
from pipeline.latent.compression import compress
from pipeline.latent.plan import CacheLayout
from pipeline.latent.position import part_position
from pipeline.latent.rope import EMPTY
from pipeline.latent.rotary import align_keys, as_complex, as_real, mean_turns, multiplication
from pipeline.latent.scores import SampledAttention
from pipeline.latent.source import LatentSource
from pipeline.latent.weights import LatentWeights
from pipeline.layers import Layer


def sampled_attention(source: LatentSource, layer: Layer, inputs: np.ndarray) -> SampledAttention:
    """The source's attention in a layer over sampled `inputs`, float32 (chunks, n, d)."""
    q, k, v = (source.by_head(layer, role) for role in "qkv")
    q = q * source.score_scales(layer.number)[:, None]
    return SampledAttention(inputs, q, k, v, source.frequencies(layer.number))


def output_projection(source: LatentSource, layer: Layer) -> np.ndarray:
    """What each head of a layer writes to the residual stream, float32 (heads, d, b)."""
    output = layer.output()
    if output is None:
        raise SurgeryError(f"{layer.model.path}: has no tensor blk.{layer.number}.attn_output.weight")
    return output.reshape(source.width, source.heads, source.head_size).transpose(1, 0, 2)


def measured_distances(attention: SampledAttention) -> np.ndarray:
    """How much each distance between query and key counts for each head, (heads, n)."""
    heads = range(len(attention.q))
    return np.stack([attention.distances(attention.probabilities(attention.scores(head))) for head in heads])


@dataclass(frozen=True)
class AlignedLayer:
    """A layer's keys, aligned over heads: what stays rotated, and the rows that a latent is to stand for.

    rotary_key: (2 pairs, d); rotary_query: (heads, b, 2 pairs); turning: (pairs,), as in `LatentWeights`
    rows: (n, d), the keys' other components, then v; metric: in which an error of theirs is in nats
    maps: for each head (b, n - len(v)), from its queries to the components; values: how many rows are v
    key_cost: nats for an error of keys per unit of what the queries that meet it make of it
    """

    rotary_key: np.ndarray
    rotary_query: np.ndarray
    turning: np.ndarray
    rows: np.ndarray
    metric: Metric
    maps: list[np.ndarray]
    values: int
    key_cost: float


def align_layer(source: LatentSource, layer: Layer, layout: CacheLayout, distances: np.ndarray) -> AlignedLayer:
    """Divide a layer's keys by the calibration's moments into what stays rotated and what does not.

    The strongest component of the keys at each frequency that the first `layout.pairs` slots hold is cached rotated; but
    for the pairs that hold the keys' position, if `layout` keeps it apart (`pipeline.latent.position`). All others lose
    their rotation, and in exchange are multiplied by its mean over the `distances` (heads, n) that each head's attention
    spans.
    """
    moments = layer.moments("k")
    metric_v = attention_metric(layer, "v")
    inputs = metric_v.inputs
    q, k = (source.by_head(layer, role).astype(np.float64) for role in "qk")
    queries, v = as_complex(q), layer.rows("v").astype(np.float64)
    per_head = np.einsum("hfd,de,hfe->hf", queries, moments.inputs, queries.conj(), optimize=True).real
    group = len(q) // len(k)
    aligned = align_keys(as_complex(k), per_head.reshape(len(k), group, -1).sum(axis=1), inputs)
    held = source.held(layer.number, layout.pairs)
    filled = held != EMPTY
    turning = source.frequencies(layer.number)
    in_order = np.array_equal(held, np.arange(layout.pairs))  # each slot has the frequency of its number
    context = source.context if layout.position_apart and in_order and len(k) > 1 else 0
    apart = part_position(aligned.rows, inputs, turning, layout.pairs, context)
    compressed = np.ones((source.pairs, len(k)), bool)
    compressed[held[filled], 0] = False
    compressed[apart.held, 0] = True
    frequency, component = np.nonzero(compressed)
    turns = mean_turns(distances, turning)
    maps, rotary = [], []
    for head in range(source.heads):
        restore = aligned.restore[:, head // group]
        factors = (turns[head, frequency] * restore[frequency, component]).conj()
        constant, position = apart.queries(restore)
        maps.append(np.hstack([multiplication(factors, frequency, source.pairs), constant]))
        rotary.append(multiplication(filled * restore[held, 0].conj(), held, source.pairs))
        rotary[-1][:, apart.held_numbers] = position
    rotary_key = as_real(filled[:, None] * apart.content[held, 0])
    rotary_key[apart.held_numbers] = apart.held_keys
    cost_k = layer.sensitivity("k") / energy(layer.rows("k").astype(np.float64), inputs, output_blocks(layer, "k"))
    cost_v = layer.sensitivity("v")
    meeting = sum(m.T @ part @ moments.inputs @ part.T @ m for m, part in zip(maps, q, strict=True))
    blocks = [cost_v * block for block in metric_v.outputs or ()]
    if maps[0].size:
        blocks.insert(0, cost_k * meeting)
    rows = np.vstack([as_real(apart.content[frequency, component]), apart.constant, v])
    slots = source.slots.first(layout.pairs).rope.frequencies()
    return AlignedLayer(rotary_key, np.stack(rotary), slots, rows, Metric(inputs, blocks), maps, len(v), cost_k)


def compress_layer(source: LatentSource, aligned: AlignedLayer, rank: int, seed: int) -> tuple[LatentWeights, float]:
    """The layer's latent attention, and the share of energy that its latent keeps: keys and values together."""
    compression = compress(aligned.rows, aligned.metric, rank, seed)
    keys, values = np.split(compression.expand, [len(aligned.rows) - aligned.values])
    values = values.reshape(-1, source.head_size, values.shape[1])
    weights = LatentWeights(
        latent=compression.latent,
        rotary_key=aligned.rotary_key,
        latent_query=np.stack([m @ keys for m in aligned.maps]),
        rotary_query=aligned.rotary_query,
        value=np.repeat(values, source.heads // len(values), axis=0),
        turning=aligned.turning,
    )
    return weights, compression.kept
