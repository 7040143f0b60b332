"""What reads the outputs of a layer's projections: the diagonal blocks of L^T L, see `attention_metric`.

An error of q counts by the keys that it meets, one of k by the queries, one of v by the output projection. Where they
are made of latents, an error of what makes the latent counts by what reads it. Where q or k are normalised a head (or
as a whole), an error counts as a share of what it is an error of, times the norm's weights; that the norm also removes
what points along the vector itself, another one for each token, is left out. What a layer does not have by itself,
such as the keys of another layer, is not known: there all output directions count alike.

gate and up are read by `down`, as their product: a relative error of either is one of the product. o and down write
to the residual stream, which all that comes after reads: there all output directions count alike, too.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.decompose.attention_metric import (
    average_over_turns,
    blocks_together,
    energy,
    output_moments,
    projected_moments,
    sums_of_groups,
)
from pipeline.layers import Layer


def output_blocks(layer: Layer, role: str) -> list[np.ndarray]:
    """The diagonal blocks of L^T L for a projection, in the order of its rows, float64: most often one for each head.

    A block is (b, b), or (b,) if it is itself diagonal.
    """
    roles = layer.projections.keys()
    if role in ("gate", "up"):
        return [_read_by_down(layer, role)]
    if role in ("o", "down"):
        return [np.ones(layer.projections[role].rows)]
    if "v_b" in roles:
        return _of_latents(layer, role)
    if roles >= {"q", "k", "v"}:
        return _of_heads(layer, role)
    return [np.ones(layer.projections[role].rows)]


def _of_heads(layer: Layer, role: str) -> list[np.ndarray]:
    heads, kv_heads = layer.heads, layer.kv_heads
    if role == "v":
        blocks = _read_by_output(layer, heads, layer.projections["v"].rows // kv_heads)
        return sums_of_groups(blocks, kv_heads)
    counts = {"q": heads, "k": kv_heads}
    other = "k" if role == "q" else "q"
    moments = layer.moments(other)
    met = _scaled(_second_moments(layer, other, counts[other]), *_norm_scales(layer, other, counts[other]))
    turned = [average_over_turns(moment, moments.rope, moments.rotated) for moment in met]
    blocks = sums_of_groups(turned, kv_heads) if role == "k" else [b for b in turned for _ in range(heads // kv_heads)]
    return _scaled(blocks, *_norm_scales(layer, role, counts[role]))


def _second_moments(layer: Layer, role: str, count: int) -> list[np.ndarray]:
    moments = layer.moments(role)
    return projected_moments(layer.rows(role), moments.inputs, moments.mean, layer.bias(role), count)


def _norm_scales(layer: Layer, role: str, count: int) -> list[np.ndarray]:
    """For each head what its features are multiplied with on the way through the norm of q or k: (b,) each; [] if none."""
    weights = layer.norm(role)
    if weights is None:
        return []
    energies = np.array([np.trace(moment) for moment in _second_moments(layer, role, count)])
    size = layer.projections[role].rows // count
    if weights.ndim == 1 and weights.size == size * count > size:  # over all heads at once
        energies = np.full(count, energies.mean())
    if weights.size not in (size, count, size * count):
        return []
    each = weights.reshape(-1, 1 if weights.size == count else size)  # a head may have one weight for all its features
    by_head = np.broadcast_to(each, (count, size)).astype(np.float64)
    return list(by_head / np.sqrt(np.maximum(energies / size, np.finfo(float).tiny))[:, None])


def _scaled(blocks: Sequence[np.ndarray], *scales: np.ndarray) -> list[np.ndarray]:
    return [block * np.outer(s, s) for block, s in zip(blocks, scales, strict=True)] if scales else list(blocks)


def _read_by_output(layer: Layer, heads: int, size: int) -> list[np.ndarray]:
    """For each query head how its v is read, (size, size); the identity where that is not known."""
    output = layer.output()
    if output is None or output.shape[1] != heads * size:
        return [np.eye(size)] * heads
    return output_moments(output, heads)


def _read_by_down(layer: Layer, role: str) -> np.ndarray:
    """For each output feature a of gate or up E[h^2] |d|^2 / E[a^2], (n,), where `down` makes d h of the product h."""
    down, made, bias = layer.projections["down"], layer.result_energies(role), layer.bias(role)
    if bias is not None:
        made = made + 2 * bias * (layer.rows(role) @ layer.moments(role).mean) + np.square(bias, dtype=np.float64)
    read = np.square(layer.rows("down"), dtype=np.float64).sum(axis=0)
    return (
        layer.calibration.mean_squares(down.tensor, down.block.expert) * read / np.maximum(made, np.finfo(float).tiny)
    )


def _of_latents(layer: Layer, role: str) -> list[np.ndarray]:
    """Of latent attention: scores are q . (k_b c, r) with the latent c and k's rotated part r, which all heads share."""
    heads = layer.heads
    query = "q_b" if "q_b" in layer.projections else "q"
    if role == "v_b":
        return _read_by_output(layer, heads, layer.projections["v_b"].rows // heads)
    keys = _latent_keys(layer)
    if role == query:
        return keys
    if role == "q_a":
        parts = np.split(layer.rows(query).astype(np.float64), heads)
        read = sum(part.T @ block @ part for part, block in zip(parts, keys, strict=True))
        return _scaled([np.asarray(read)], *_latent_norm(layer, "q_a"))
    queries = _second_moments(layer, query, heads)
    plain = layer.projections["k_b"].rows // heads if "k_b" in layer.projections else 0
    if role == "k_b":
        return [moment[:plain, :plain] for moment in queries]
    return _of_the_latent(layer, queries, plain)


def _latent_keys(layer: Layer) -> list[np.ndarray]:
    """The second moment of each head's key: what k_b makes of the latent, then the rotated part."""
    latent, x = layer.projections["v_b"].columns, layer.moments("kv_a")
    rotated = layer.rows("kv_a")[latent:]
    shared = projected_moments(rotated, x.inputs, x.mean, None, 1)[0]
    turned = average_over_turns(shared, x.rope, min(x.rotated, len(shared)))
    if "k_b" not in layer.projections:
        return [turned] * layer.heads
    return [blocks_together(block, turned) for block in _second_moments(layer, "k_b", layer.heads)]


def _of_the_latent(layer: Layer, queries: Sequence[np.ndarray], plain: int) -> list[np.ndarray]:
    """For kv_a, whose first rows make the latent, which k_b and v_b read, and the others k's rotated part.

    What an error costs as one of k, and as one of v, each as a share of the energy, add up.
    """
    heads, latent, x = layer.heads, layer.projections["v_b"].columns, layer.moments("kv_a")
    rows = layer.rows("kv_a").astype(np.float64)
    values = np.split(layer.rows("v_b").astype(np.float64), heads)
    read = _read_by_output(layer, heads, len(values[0]))
    by_values = sum(part.T @ block @ part for part, block in zip(values, read, strict=True))
    by_keys = np.zeros((latent, latent))
    if plain:
        for part, query in zip(np.split(layer.rows("k_b").astype(np.float64), heads), queries, strict=True):
            by_keys += part.T @ query[:plain, :plain] @ part
    turned = sum(query[plain:, plain:] for query in queries)
    turned = average_over_turns(np.asarray(turned), x.rope, min(x.rotated, len(rows) - latent))
    through = _latent_norm(layer, "kv_a")
    total = [np.zeros((latent, latent)), np.zeros_like(turned)]
    for block, rest in ((by_keys, turned), (np.asarray(by_values), np.zeros_like(turned))):
        blocks = [*_scaled([block], *through), rest]
        whole = energy(rows, x.inputs, blocks)
        total = [sum_ + part / whole for sum_, part in zip(total, blocks, strict=True)]
    return [block for block in total if len(block)]


def _latent_norm(layer: Layer, role: str) -> list[np.ndarray]:
    """The weights of the norm that a latent goes through; its scale is the same for all of the latent."""
    weights = layer.norm(role)
    return [] if weights is None else [weights.astype(np.float64)]
