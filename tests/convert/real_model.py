"""The embedded SmolLM2-135M, turned back into the checkpoint that it came from, but for the rounding of its weights."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.inputs.models import embedded_model

CONTROL = 3
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def save_real_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, rebuilt from the GGUF file's tokens and merges."""
    model = open_gguf(embedded_model())
    tokens, types = model.get("tokenizer.ggml.tokens"), model.get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in model.get("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [text for text, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        # The hub's copy says GPT2Tokenizer, for which transformers 5 puts GPT-2's pre-tokenizer in tokenizer.json's place.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "chat_template": model.get("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_real_checkpoint(folder: Path) -> None:
    """config.json, the dequantised weights in float32 and the tokenizer, in transformers' names and order of rows."""
    model = open_gguf(embedded_model())
    config = transformers.LlamaConfig(
        vocab_size=model.hyperparameter("vocab_size"),
        hidden_size=model.hyperparameter("embedding_length"),
        intermediate_size=model.hyperparameter("feed_forward_length"),
        num_hidden_layers=model.hyperparameter("block_count"),
        num_attention_heads=model.hyperparameter("attention.head_count"),
        num_key_value_heads=model.hyperparameter("attention.head_count_kv"),
        max_position_embeddings=model.hyperparameter("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": model.hyperparameter("rope.freq_base")},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(checkpoint_tensor(model, name)) for name in model.tensors}
    empty.load_state_dict(
        {_checkpoint_name(name): tensor for name, tensor in weights.items()}, assign=True, strict=False
    )
    empty.tie_weights()
    empty.save_pretrained(folder)
    save_real_tokenizer(folder)


def checkpoint_tensor(model: GGUFModel, name: str) -> np.ndarray:
    """A tensor of the GGUF file, float32, its rows in transformers' order: even ones of a head first, then odd ones."""
    values = model.read(name)
    for part, heads in (("attn_q.", "attention.head_count"), ("attn_k.", "attention.head_count_kv")):
        if part in name:
            per_head = values.reshape(model.hyperparameter(heads), -1, values.shape[-1])
            return np.concatenate([per_head[:, 0::2], per_head[:, 1::2]], axis=1).reshape(values.shape)
    return values


def _checkpoint_name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{suffix}"
