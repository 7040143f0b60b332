"""TransMLA's conversion as published, to be compared with: other bases, nothing measured of errors, nothing refitted.

Of a few neighbouring frequencies, folded, the keys of all heads are turned to their principal components, real ones,
by their second moment; as many of them as there are frequencies stay rotated, the strongest at the fastest. The others
lose their rotation and get nothing for it. They and the values, made equally large ("balanced"), are compressed by PCA.
With one frequency in a fold and one key/value head nothing is lost. Source: Meng et al., TransMLA, 2025.

Two choices are kinder than the original's: a layer has the fold by which its own scores are off least, where the
original takes one for all layers by perplexity; and the latent's numbers are made equally large, as a quantised cache needs.
"""

import numpy as np

from pipeline.decompose.weighted import Metric
from pipeline.latent.layer import AlignedLayer, compress_layer
from pipeline.latent.plan import CacheLayout
from pipeline.latent.queries import score_error
from pipeline.latent.rope import EMPTY
from pipeline.latent.rotary import align_keys, as_complex, as_real, multiplication
from pipeline.latent.scores import SampledAttention
from pipeline.latent.source import LatentSource
from pipeline.latent.weights import LatentWeights
from pipeline.layers import Layer

FOLDS = (1, 2, 4, 8)  # frequencies taken for one: published conversions have 4 or 8


def transmla_layer(
    source: LatentSource, layer: Layer, layout: CacheLayout, attention: SampledAttention
) -> tuple[LatentWeights, float, float]:
    """A layer's latent attention, the share of energy that its latent keeps, and its score error (`score_error`)."""
    rotated = len(source.rope.frequencies)
    found = []
    for fold in (fold for fold in FOLDS if rotated % fold == source.pairs % fold == 0):
        weights, kept = compress_layer(source, align_folded(source, layer, layout, fold), layout.rank, layer.number)
        found.append((weights, kept, score_error(weights, attention)))
    return min(found, key=lambda each: each[2])


def align_folded(source: LatentSource, layer: Layer, layout: CacheLayout, fold: int) -> AlignedLayer:
    """A layer's keys in principal components over heads and each `fold` neighbouring frequencies, and its values.

    fold: a divisor of the pairs that are rotated and of all
    """
    inputs = layer.moments("k").inputs
    k, v = (source.by_head(layer, role).astype(np.float64) for role in "kv")
    keys = as_complex(k).reshape(len(k), -1, fold, source.width).transpose(0, 2, 1, 3)
    keys = keys.reshape(len(k) * fold, -1, source.width)
    aligned = align_keys(keys, np.ones(keys.shape[:2]), inputs, real=True)
    restore = aligned.restore.reshape(-1, len(k), fold, len(k) * fold)  # of a fold, a head, and one of its frequencies
    held = source.held(layer.number, layout.pairs)
    filled = held != EMPTY
    compressed = np.ones(aligned.rows.shape[:2], bool)
    compressed[held[filled] // fold, held[filled] % fold] = False
    folds, components = np.nonzero(compressed)

    def query_map(head: int, folds: np.ndarray, components: np.ndarray) -> np.ndarray:
        """From a head's query to these components of its key, (b, 2 n)."""
        group = head * len(k) // source.heads
        parts = (
            multiplication(restore[folds, group, i, components], folds * fold + i, source.pairs) for i in range(fold)
        )
        return np.asarray(sum(parts))

    heads = range(source.heads)
    rotary = [query_map(head, held // fold, held % fold) * np.repeat(filled, 2) for head in heads]
    rows, values = as_real(aligned.rows[folds, components]), v.reshape(-1, source.width)
    sizes = [_mean_size(part, inputs) for part in (rows, values)]
    balance = sizes[0] / sizes[1] if all(sizes) else 1.0
    outputs = [np.full(len(rows), balance**-2), np.ones(len(values))]
    return AlignedLayer(
        rotary_key=as_real(filled[:, None] * aligned.rows[held // fold, held % fold]),
        rotary_query=np.stack(rotary),
        turning=source.slots.first(layout.pairs).rope.frequencies(),
        rows=np.vstack([rows, values]),
        metric=Metric(inputs, [block for block in outputs if block.size]),
        maps=[query_map(head, folds, components) for head in heads],
        values=len(values),
        key_cost=1.0,
    )


def _mean_size(rows: np.ndarray, inputs: np.ndarray) -> float:
    """The mean over `rows` (n, d) of the root mean square of what they make of inputs of second moment `inputs`."""
    squares = np.einsum("nd,de,ne->n", rows, inputs, rows, optimize=True)
    return float(np.sqrt(np.maximum(squares, 0)).mean()) if len(rows) else 0.0
