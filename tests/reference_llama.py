"""A Llama in numpy and float64, from the published description alone: the reference that llama.cpp is observed against.

Touvron et al., LLaMA, 2023; Su et al., RoFormer, 2021 (RoPE on neighbouring pairs, as GGUF stores Llama's q and k).
"""

from dataclasses import dataclass

import numpy as np

from pipeline.gguf_file.reader import GGUFModel


@dataclass(frozen=True)
class LayerTrace:
    """What the reference saw in one layer: normalised input x (n, d), attention probabilities (heads, n, n)."""

    x: np.ndarray
    probabilities: np.ndarray
    mixed: np.ndarray  # (n, heads * head size), the input of the output projection
    y: np.ndarray  # (n, d), what gate and up read
    made: np.ndarray  # (n, d), what down makes
    chosen: np.ndarray | None = None  # (n, experts of a token), to which it is routed


def trace_llama(model: GGUFModel, tokens: np.ndarray) -> list[LayerTrace]:
    """Run `model`, a plain Llama, over `tokens` (n,) as one sequence from position 0."""
    weight = {name: model.read(name).astype(np.float64) for name in model.tensors}
    heads, kv_heads = (model.hyperparameter(f"attention.head_count{kv}") for kv in ("", "_kv"))
    epsilon = model.hyperparameter("attention.layer_norm_rms_epsilon")
    angles = _angles(model, len(tokens))
    h, traces = weight["token_embd.weight"][tokens], []
    for layer in range(model.hyperparameter("block_count")):
        w = {name.split(".", 2)[2][:-7]: v for name, v in weight.items() if name.startswith(f"blk.{layer}.")}
        x = _rms_norm(h, w["attn_norm"], epsilon)
        q, k, v = (
            (x @ w[f"attn_{role}"].T).reshape(len(x), n, -1).transpose(1, 0, 2)
            for role, n in zip("qkv", (heads, kv_heads, kv_heads), strict=True)
        )
        q, k = _turn(q, angles), _turn(k, angles)
        k, v = (np.repeat(part, heads // kv_heads, axis=0) for part in (k, v))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores[:, ~np.tri(len(x), dtype=bool)] = -np.inf
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        mixed = (p @ v).transpose(1, 0, 2).reshape(len(x), -1)
        h = h + mixed @ w["attn_output"].T
        y = _rms_norm(h, w["ffn_norm"], epsilon)
        made, chosen = _feed_forward(w, y, model.hyperparameter("expert_used_count", 0))
        traces.append(LayerTrace(x, p, mixed, y, made, chosen))
        h = h + made
    return traces


def gated(y: np.ndarray, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate y) * (up y), (n, feed forward): Shazeer, GLU variants improve transformers, 2020."""
    g = y @ gate.T
    result: np.ndarray = g / (1 + np.exp(-g)) * (y @ up.T)
    return result


def _feed_forward(w: dict[str, np.ndarray], y: np.ndarray, used: int) -> tuple[np.ndarray, np.ndarray | None]:
    """What it makes, and the experts that each token goes through (Jiang et al., Mixtral of experts, 2024)."""
    if not used:
        return gated(y, w["ffn_gate"], w["ffn_up"]) @ w["ffn_down"].T, None
    scores = y @ w["ffn_gate_inp"].T
    chosen = np.argsort(-scores, axis=1)[:, :used]
    weights = np.exp(np.take_along_axis(scores, chosen, axis=1))
    weights /= weights.sum(axis=1, keepdims=True)
    made = np.zeros_like(y)
    for expert, (gate, up, down) in enumerate(zip(*(w[f"ffn_{r}_exps"] for r in ("gate", "up", "down")), strict=True)):
        made += (weights * (chosen == expert)).sum(axis=1)[:, None] * (gated(y, gate, up) @ down.T)
    return made, chosen


def _angles(model: GGUFModel, n: int) -> np.ndarray:
    size = model.hyperparameter("rope.dimension_count")
    base = model.hyperparameter("rope.freq_base", 10000.0)
    return np.arange(n)[:, None] * base ** (-np.arange(0, size, 2) / size)


def _turn(heads: np.ndarray, angles: np.ndarray) -> np.ndarray:
    turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape)


def _rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * weight
