"""Tiny random checkpoints of every family, made with transformers, and what llama.cpp and transformers make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from native.model import ContextOptions, load_model, open_context
from tests.convert.tokenizers import PHI_3, save_byte_level, save_sentence_piece, sentence_piece_as_json

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large, so that a wrong row or norm shows in the logits
    "rms_norm_eps": 1e-5,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
MINISTRAL3_ROPE = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
GEMMA: dict[str, Any] = {
    "initializer_range": 0.03,  # smaller: llama.cpp takes GELU from a table in half precision
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 32,
    "tie_word_embeddings": True,
}
# name -> (model class, what differs from SIZES, tokenizer)
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", {}, "sentencepiece"),
    "llama-mha-tied": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}, "sentencepiece-json"),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}, "gpt-2"),
    "llama-head-dim": ("Llama", {"head_dim": 32}, "smollm"),
    "llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE}, "llama-bpe"),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        "llama-bpe",
    ),
    "llama-yarn": (
        "Llama",
        {"rope_parameters": YARN},
        "llama-bpe",
    ),
    "llama-yarn-magnitude": ("Llama", {"rope_parameters": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}}, "llama-bpe"),
    "llama-yarn-attention-factor": ("Llama", {"rope_parameters": YARN | {"attention_factor": 0.8}}, "llama-bpe"),
    "mistral": ("Mistral", {"head_dim": 16, "sliding_window": None}, "sentencepiece"),
    "qwen2": ("Qwen2", {}, "qwen2"),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}, "qwen2"),
    "gemma": (
        "Gemma",
        {"initializer_range": 0.03, "head_dim": 16, "tie_word_embeddings": True},
        "sentencepiece",
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "pad_token_id": None}, "llama-bpe"),
    "ernie": ("Ernie4_5", {"head_dim": 16}, "sentencepiece"),
    "hunyuan": (
        "HunYuanDenseV1",
        {
            "rope_parameters": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0, "rope_theta": 10000.0},
            "head_dim": 16,
            "max_position_embeddings": 32768,
            "eod_token_id": 1,
        },
        "llama-bpe",
    ),
    "granite": (
        "Granite",
        {
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "attention_bias": True,
            "mlp_bias": True,
        },
        "llama-bpe",
    ),
    "gemma2": ("Gemma2", GEMMA | {"num_hidden_layers": 4}, "sentencepiece"),
    "gemma2-no-caps": (
        "Gemma2",
        GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "sentencepiece",
    ),
    "gemma2-27b": (
        "Gemma2",
        GEMMA | {"num_hidden_layers": 46, "head_dim": 32, "query_pre_attn_scalar": 16, "hidden_size": 64},
        "sentencepiece",
    ),
    "gemma3-pattern": (
        "Gemma3",
        GEMMA
        | {
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
        "sentencepiece",
    ),
    "gemma2-no-windows": (
        "Gemma2",
        GEMMA | {"sliding_window": 8, "layer_types": ["full_attention"] * 2},
        "sentencepiece",
    ),
    "gemma3-no-windows": (
        "Gemma3",
        GEMMA | {"num_hidden_layers": 2, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
        "sentencepiece",
    ),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7}, "sentencepiece"),
    "gemma3-pictures": (  # as those of 4B and more: longer positions in the layers that see everything
        "Gemma3",
        GEMMA
        | {
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        "sentencepiece",
    ),
    "ministral3": ("Ministral3", {"head_dim": 32, "rope_parameters": MINISTRAL3_ROPE}, "llama-bpe"),
    "ministral3-pictures": (
        "Ministral3",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": MINISTRAL3_ROPE | {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 2.0, "mscale_all_dim": 0.5},
        },
        "llama-bpe",
    ),
    "mistral-pictures": ("Mistral", {"head_dim": 16, "sliding_window": None}, "llama-bpe"),
    "phi3": ("Phi3", {"sliding_window": 64, "pad_token_id": None}, "sentencepiece-phi-3"),
    "phi4": (
        "Phi3",
        {
            "pad_token_id": None,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0, "partial_rotary_factor": 0.75},
        },
        "phi-4",
    ),
}  # fmt: skip
# Those that are the text part of a model that sees pictures, too -> that model's class, and what its config says
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3-pictures": (
        "Gemma3",
        {"mm_tokens_per_image": 4, "boi_token_index": 509, "eoi_token_index": 510, "image_token_id": 511},
    ),
    "ministral3-pictures": ("Mistral3", {"image_token_index": 511}),
    "mistral-pictures": ("Mistral3", {"image_token_index": 511, "tie_word_embeddings": False}),
}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "head_dim": 8,
}  # fmt: skip


def save_tokenizer(folder: Path, kind: str) -> None:
    if kind.startswith("sentencepiece"):
        save_sentence_piece(folder, PHI_3 if kind == "sentencepiece-phi-3" else {})
        if kind == "sentencepiece-json":
            sentence_piece_as_json(folder).save(str(folder / "tokenizer.json"))
            (folder / "tokenizer.model").unlink()
    else:
        save_byte_level(folder, kind)


def make_checkpoint(folder: Path, name: str, dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
    """Save the checkpoint `name` of CHECKPOINTS to `folder`; norms are random, too, as those of a trained model are."""
    return save_checkpoint(folder, *CHECKPOINTS[name], PICTURES.get(name), dtype, **saving)


def save_checkpoint(
    folder: Path,
    family: str,
    changes: dict[str, Any],
    tokenizer: str,
    pictures: tuple[str, dict[str, Any]] | None = None,
    dtype: torch.dtype = torch.float32,
    **saving: Any,
) -> Path:
    """Save a random model of class `family` to `folder`, that differs by `changes` from SIZES."""
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    bos = 1 if tokenizer.startswith("sentencepiece") else 0
    config = config_class(**SIZES | {"bos_token_id": bos, "eos_token_id": bos + 1} | changes)
    model_class = f"{family}ForCausalLM"
    if pictures:
        outer, settings = pictures
        config = getattr(transformers, f"{outer}Config")(text_config=config.to_dict(), vision_config=VISION)
        config.update(settings)
        model_class = f"{outer}ForConditionalGeneration"
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * (0.3 if "norm" in parameter_name else 0.1))
    model.to(dtype).save_pretrained(folder, **saving)
    save_tokenizer(folder, tokenizer)
    return folder


def reference_model(folder: Path) -> Any:
    [name] = json.loads((folder / "config.json").read_text())["architectures"]
    return (
        getattr(transformers, name)
        .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
        .eval()
    )


def reference_logits(model: Any, ids: list[int]) -> np.ndarray:
    """transformers' logits after each token: float32 (n, vocabulary)."""
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def reference_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The `count` likeliest tokens after `ids`, one after the other, as transformers has them."""
    chosen: list[int] = []
    fed, cache = torch.tensor([ids]), None
    with torch.no_grad():
        for _ in range(count):
            result = model(fed, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            chosen.append(int(result.logits[0, -1].argmax()))
            fed = torch.tensor([chosen[-1:]])
    return chosen


def llama_cpp_logits(path: Path, ids: list[int]) -> np.ndarray:
    """llama.cpp's logits after each token, its KV cache in float32: float32 (n, vocabulary)."""
    n = len(ids)
    options = ContextOptions(n_ctx=max(n, 64), type_k="f32", type_v="f32", threads=1, flash_attention=False)
    with load_model(str(path)) as model, open_context(model, options) as context:
        context.decode(ids, np.arange(n), np.zeros(n, np.int32), np.ones(n, np.int8))
        return context.logits(n).copy()


def llama_cpp_greedy(path: Path, ids: list[int], count: int) -> list[int]:
    """The `count` likeliest tokens after `ids`, one after the other, as llama.cpp has them."""
    options = ContextOptions(n_ctx=len(ids) + count, type_k="f32", type_v="f32", threads=1, flash_attention=False)
    chosen: list[int] = []
    with load_model(str(path)) as model, open_context(model, options) as context:
        context.decode(ids, np.arange(len(ids)), np.zeros(len(ids), np.int32), np.eye(len(ids), dtype=np.int8)[-1])
        for position in range(len(ids), len(ids) + count):
            chosen.append(int(context.logits(1)[0].argmax()))
            context.decode([chosen[-1]], np.array([position]), np.zeros(1, np.int32), np.ones(1, np.int8))
    return chosen


def llama_cpp_ids(path: Path, text: str) -> list[int]:
    """The ids of a text in which special tokens may occur."""
    with load_model(str(path)) as model:
        ids: list[int] = model.tokenize(text, special=True).tolist()
    return ids
