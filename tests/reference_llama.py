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
        gate = y @ w["ffn_gate"].T
        made = (gate / (1 + np.exp(-gate)) * (y @ w["ffn_up"].T)) @ w["ffn_down"].T
        traces.append(LayerTrace(x, p, mixed, y, made))
        h = h + made
    return traces


def _angles(model: GGUFModel, n: int) -> np.ndarray:
    size = model.hyperparameter("rope.dimension_count")
    base = model.hyperparameter("rope.freq_base", 10000.0)
    return np.arange(n)[:, None] * base ** (-np.arange(0, size, 2) / size)


def _turn(heads: np.ndarray, angles: np.ndarray) -> np.ndarray:
    turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape)


def _rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * weight
