"""What llama.cpp's architectures make of a layer's tensors: facts of its sources, src/models/ of the pinned version.

A tensor's name and shape do not say what it is for: `attn_qkv` holds q, k and v in most architectures, the inputs of
linear attention in others; q's tensor may hold a gate as well. So what is not listed here is refused by name.
"""

from typing import Any, Protocol


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUSED = _names(
    """afmoe apertus arcee arctic baichuan bailingmoe bailingmoe2 bailingmoe3 bert bitnet bloom chameleon chatglm
    codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2-ocr dots1 dream ernie4_5 ernie4_5-moe
    eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 glm4 glm4moe
    gpt2 gptneox granite granite_swa granitehybrid granitemoe graniteswitch grok grovemoe hrm_text hunyuan-dense
    hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 laguna lfm2 lfm2moe llada
    llada-moe llama llama-embed llama4 maincoder maple mellum mimo2 minicpm minimax-01 minimax-m2 minimax-m3 mistral3
    modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo
    olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 pockettts qwen qwen2
    qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3tts qwen3vl qwen3vlmoe qwen4exp refact rnd1
    seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie xverse gpt-oss"""
)
"""Where `attn_qkv` of a softmax attention layer holds the rows of q, then those of k, then those of v."""

GATE_AND_UP = _names("chatglm glm4 jina-bert-v2 modern-bert neo-bert phi3 plamo2 plamo3")
"""Where `ffn_up` of twice the usual height holds the rows of the gate, then those of up."""

BESIDE_EXPERTS = _names("arctic gemma4 grok")
"""Where a layer has a feed-forward block of its own and experts; elsewhere experts take the place of the block."""

WITHOUT_EXPERTS = _names("refact")
"""Where llama.cpp loads experts, but computes nothing with them."""

GATED = frozenset({"qwen35", "qwen35moe", "qwen3next", "qwen4exp"})
"""Where q's rows are, head by head, those of the query and as many of a gate that its output is multiplied with."""

LINEAR_EXCEPT_EVERY = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
"""Where all layers but every Nth, N by default, have linear attention, and `recurrent_layers` may say it outright."""

BESIDE_A_STATE_SPACE = frozenset({"falcon-h1"})
"""Where a layer has both softmax attention and a state space, side by side."""

LATENT = _names(
    """bailingmoe3 deepseek2 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-k3 kimi-linear minicpm3 mistral4
    plm"""
)
"""Where k and v are made of a latent, `attn_kv_a_mqa`, whose last rows are the part of k that RoPE turns."""

SINGLE_KEY_VALUE = frozenset({"deepseek4"})
"""Where one head, `attn_kv`, is k and v at once."""

REFUSED = {
    "clip": "an encoder of images, which is no language model",
    "dflash": "a draft model that reads another model's states",
    "eagle3": "a draft model that reads another model's states",
    "gemma4-assistant": "a draft model that reads another model's keys and values",
    "t5": "an encoder and a decoder with attention between them",
    "t5encoder": "the encoder of such a pair",
    "wavtokenizer-dec": "a decoder of audio, which is no language model",
}
"""What surgery leaves alone as a whole, and why."""


class Hyperparameters(Protocol):
    """What is asked about a model here."""

    @property
    def architecture(self) -> str: ...

    def hyperparameter(self, name: str, default: Any = None) -> Any: ...


def of_layer(value: Any, layer: int) -> Any:
    """A hyperparameter that is one number for all layers or a list with one for each; 0 where the list has ended."""
    if isinstance(value, list):
        return value[layer] if layer < len(value) else 0
    return value


def has_linear_attention(model: Hyperparameters, layer: int) -> bool:
    """Whether the metadata make a layer one of linear attention or another recurrence, whatever tensors it has."""
    every = LINEAR_EXCEPT_EVERY.get(model.architecture)
    if every is None:
        kv_heads = model.hyperparameter("attention.head_count_kv")
        return isinstance(kv_heads, list) and layer < len(kv_heads) and kv_heads[layer] == 0
    if (listed := model.hyperparameter("attention.recurrent_layers")) is not None:
        return bool(of_layer(listed, layer))
    interval = model.hyperparameter("full_attention_interval", every)
    return not isinstance(interval, int) or interval < 1 or (layer + 1) % interval != 0


def computes_own_keys(model: Hyperparameters, layer: int, layers: int) -> bool:
    """Whether a layer has keys and values of its own, rather than those that an earlier layer left in the cache."""
    if model.architecture == "gemma3n":
        return layer < 20
    if model.architecture == "gemma4":
        return layer < layers - int(model.hyperparameter("attention.shared_kv_layers", 0))
    return True
