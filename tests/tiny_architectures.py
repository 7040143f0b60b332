"""Tiny random models of architectures that are no Llama: encoders, learned positions, recurrent and hybrid memory."""

from pathlib import Path

import gguf
import numpy as np

from tests.tiny_model import TinyModel, byte_vocabulary, tensors_of, write_tiny_model

WIDTH, FEED_FORWARD, KV_WIDTH, LEARNED_POSITIONS = 64, 96, 32, 256
FLOAT, BOOL, UINT, ARRAY = (getattr(gguf.GGUFValueType, name) for name in ("FLOAT32", "BOOL", "UINT32", "ARRAY"))
VOCABULARY = len(byte_vocabulary())
_RANDOM = np.random.default_rng(0)


def _matrix(rows: int, columns: int = WIDTH) -> np.ndarray:
    return (_RANDOM.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)


def _norm(name: str, size: int = WIDTH) -> dict[str, np.ndarray]:
    return {f"{name}.weight": np.ones(size, np.float32), f"{name}.bias": np.zeros(size, np.float32)}


def _linear(name: str, rows: int, columns: int = WIDTH) -> dict[str, np.ndarray]:
    return {f"{name}.weight": _matrix(rows, columns), f"{name}.bias": np.zeros(rows, np.float32)}


def write_bert(path: Path, **metadata: tuple[object, gguf.GGUFValueType]) -> Path:
    """An encoder, whose files say so unless `metadata`, by its names below `bert.`, says otherwise."""
    tensors = {"token_embd.weight": _matrix(VOCABULARY), "token_types.weight": _matrix(2)}
    tensors |= {"position_embd.weight": _matrix(512), **_norm("token_embd_norm")}
    for layer in range(2):
        block = f"blk.{layer}."
        for role in "qkv":
            tensors |= _linear(f"{block}attn_{role}", WIDTH)
        tensors |= _linear(block + "attn_output", WIDTH) | _norm(block + "attn_output_norm")
        tensors |= _linear(block + "ffn_up", FEED_FORWARD) | _linear(block + "ffn_down", WIDTH, FEED_FORWARD)
        tensors |= _norm(block + "layer_output_norm")
    values = {"attention.layer_norm_epsilon": (1e-5, FLOAT), "attention.causal": (False, BOOL), **metadata}
    more = {f"bert.{name}": value for name, value in values.items()} | {"tokenizer.ggml.token_type_count": (2, UINT)}
    return write_tiny_model(path, TinyModel("bert", kv_heads=4), metadata=more, tensors=tensors)


def write_t5(path: Path, *, decoder: bool) -> Path:
    """An encoder, with a decoder or alone."""
    ones = np.ones(WIDTH, np.float32)
    tensors = {"token_embd.weight": _matrix(VOCABULARY)}
    for side in ("enc", "dec") if decoder else ("enc",):
        tensors[f"{side}.output_norm.weight"] = ones
        for layer, prefix in ((layer, f"{side}.blk.{layer}.") for layer in range(2)):
            tensors |= {f"{prefix}{norm}.weight": ones for norm in ("attn_norm", "ffn_norm")}
            for attention in ("attn", "cross_attn") if side == "dec" else ("attn",):
                tensors |= {f"{prefix}{attention}_{role}.weight": _matrix(WIDTH) for role in "qkvo"}
            if side == "dec":
                tensors[prefix + "cross_attn_norm.weight"] = ones
            if layer == 0:
                tensors[prefix + "attn_rel_b.weight"] = _matrix(32, 4)
            tensors |= {
                prefix + "ffn_up.weight": _matrix(FEED_FORWARD),
                prefix + "ffn_down.weight": _matrix(WIDTH, FEED_FORWARD),
            }
    architecture = "t5" if decoder else "t5encoder"
    more: dict[str, tuple[object, gguf.GGUFValueType]] = {
        f"{architecture}.attention.relative_buckets_count": (32, UINT),
        f"{architecture}.decoder_start_token_id": (0, UINT),
    }
    return write_tiny_model(path, TinyModel(architecture, kv_heads=4), metadata=more, tensors=tensors)


def write_gpt2(path: Path) -> Path:
    """A language model with LEARNED_POSITIONS learned positions."""
    tensors = {"token_embd.weight": _matrix(VOCABULARY), "position_embd.weight": _matrix(LEARNED_POSITIONS)}
    tensors |= _norm("output_norm")
    for layer in range(2):
        block = f"blk.{layer}."
        tensors |= _linear(block + "attn_qkv", 3 * WIDTH) | _linear(block + "attn_output", WIDTH)
        tensors |= _linear(block + "ffn_up", FEED_FORWARD) | _linear(block + "ffn_down", WIDTH, FEED_FORWARD)
        tensors |= _norm(block + "attn_norm") | _norm(block + "ffn_norm")
    more = {"gpt2.attention.layer_norm_epsilon": (1e-5, FLOAT), "gpt2.context_length": (LEARNED_POSITIONS, UINT)}
    return write_tiny_model(path, TinyModel("gpt2", kv_heads=4), metadata=more, tensors=tensors)


def write_lfm2(path: Path, chat_template: str | None = None, *, speaks: bool = True) -> Path:
    """A hybrid: its short convolutions have a state that cannot be cut back; only layers 1 and 3 have attention.

    If it `speaks`, it answers with an "a" and ends, else it is random.
    """
    a = byte_vocabulary().index("a")
    embedding, output = _matrix(VOCABULARY) * 0.01, np.zeros((VOCABULARY, WIDTH), np.float32)
    if speaks:
        embedding[:, 0], embedding[:, 1], embedding[a, 0], embedding[a, 1] = 50, 0, 0, 50
        output[a, 0] = output[VOCABULARY - 1, 1] = 5
    else:
        output = _matrix(VOCABULARY)
    ones = np.ones(WIDTH, np.float32)
    tensors: dict[str, np.ndarray] = {
        "token_embd.weight": embedding,
        "token_embd_norm.weight": ones,
        "output.weight": output,
    }
    heads = [0, 2, 0, 2]
    for layer, n in enumerate(heads):
        block = f"blk.{layer}."
        tensors |= {block + "attn_norm.weight": ones, block + "ffn_norm.weight": ones}
        tensors |= {block + f"ffn_{name}.weight": _matrix(FEED_FORWARD) for name in ("gate", "up")}
        tensors[block + "ffn_down.weight"] = _matrix(WIDTH, FEED_FORWARD)
        if n:
            sizes = {"q": WIDTH, "k": KV_WIDTH, "v": KV_WIDTH, "output": WIDTH}
            tensors |= {f"{block}attn_{role}.weight": _matrix(size) for role, size in sizes.items()}
            tensors |= {f"{block}attn_{role}_norm.weight": ones[:16] for role in "qk"}
        else:
            sizes = {"in_proj": 3 * WIDTH, "out_proj": WIDTH}
            tensors |= {f"{block}shortconv.{name}.weight": _matrix(size) for name, size in sizes.items()}
            tensors[block + "shortconv.conv.weight"] = _matrix(WIDTH, 3)
    more: dict[str, tuple[object, gguf.GGUFValueType]] = {
        "lfm2.attention.head_count_kv": (heads, ARRAY),
        "lfm2.shortconv.l_cache": (3, UINT),
        "lfm2.vocab_size": (VOCABULARY, UINT),
    }
    if chat_template is not None:
        more["tokenizer.chat_template"] = (chat_template, gguf.GGUFValueType.STRING)
    return write_tiny_model(path, TinyModel("lfm2", layers=4), metadata=more, tensors=tensors)


def write_mixture(
    path: Path,
    experts: int,
    used: int,
    *,
    fused: bool = False,
    shared: int = 0,
    idle: bool = False,
    type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """A Llama whose layers have `experts`, of which each token goes through `used`.

    `fused` has gate and up in one tensor, `shared` an expert of that height for all tokens: then llama.cpp knows none.
    `idle`: no token is routed to the last expert, as one of each pair of the others is preferred to it.
    """
    rng = np.random.default_rng(0)
    tensors = {
        name: values for name, values in tensors_of(TinyModel()).items() if ".ffn_" not in name or "norm" in name
    }

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    for layer in range(2):
        block = f"blk.{layer}.ffn_"
        tensors[block + "gate_inp.weight"] = weight(experts, WIDTH) * np.float32(np.sqrt(WIDTH))
        if idle:
            router = tensors[block + "gate_inp.weight"]
            router[1::2], router[-1] = -router[:-1:2], 0
        parts = {role: weight(experts, FEED_FORWARD, WIDTH) for role in ("gate", "up")}
        if fused:
            parts = {"gate_up": np.concatenate([*parts.values()], axis=1)}
        tensors |= {f"{block}{role}_exps.weight": values for role, values in parts.items()}
        tensors[block + "down_exps.weight"] = weight(experts, WIDTH, FEED_FORWARD)
        if shared:
            tensors |= {f"{block}{role}_shexp.weight": weight(shared, WIDTH) for role in ("gate", "up")}
            tensors[block + "down_shexp.weight"] = weight(WIDTH, shared)
    more = {"llama.expert_count": (experts, UINT), "llama.expert_used_count": (used, UINT)}
    return write_tiny_model(path, TinyModel(type=type), metadata=more, tensors=tensors)


def write_latent_attention(path: Path) -> Path:
    """DeepSeek's latent attention, k_b and v_b apart: 4 heads of 16 + 8 features for k and 12 for v, latents of 24 and 32."""
    heads, plain, rotated, value, latent, query_latent = 4, 16, 8, 12, 32, 24
    rng = np.random.default_rng(0)
    tensors = {
        name: values for name, values in tensors_of(TinyModel()).items() if ".attn_" not in name or "norm" in name
    }

    def weight(*shape: int) -> np.ndarray:
        return (2 * rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    for layer in range(2):
        block = f"blk.{layer}.attn_"
        tensors |= {
            f"{block}q_a.weight": weight(query_latent, WIDTH),
            f"{block}q_a_norm.weight": np.ones(query_latent, np.float32),
            f"{block}q_b.weight": weight(heads * (plain + rotated), query_latent),
            f"{block}kv_a_mqa.weight": weight(latent + rotated, WIDTH),
            f"{block}kv_a_norm.weight": np.ones(latent, np.float32),
            f"{block}k_b.weight": weight(heads, latent, plain),
            f"{block}v_b.weight": weight(heads, value, latent),
            f"{block}output.weight": weight(WIDTH, heads * value),
        }
    names = {
        "attention.q_lora_rank": query_latent,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rotated,
        "attention.value_length": latent,
        "attention.key_length_mla": plain + rotated,
        "attention.value_length_mla": value,
        "attention.head_count_kv": 1,
        "rope.dimension_count": rotated,
        "leading_dense_block_count": 2,
        "expert_count": 0,
        "expert_shared_count": 0,
        "expert_feed_forward_length": FEED_FORWARD,
    }
    more = {f"deepseek2.{name}": (number, UINT) for name, number in names.items()}
    return write_tiny_model(path, TinyModel("deepseek2"), metadata=more, tensors=tensors)
