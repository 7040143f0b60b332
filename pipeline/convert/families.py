"""The model families that can be converted, by the `architectures` entry of config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from pipeline.convert.config import Config, shown, words
from pipeline.errors import SurgeryError

NOTHING: Mapping[str, Any] = MappingProxyType({})
ROPE_TYPES = ("default", "dynamic", "linear", "yarn")


@dataclass(frozen=True)
class Family:
    """What sets a family apart. `architecture` is GGUF's name of it, `model_type` that of transformers' class.

    `defaults` are the class's values of keys that config.json leaves out. `settings` are the keys that are read for
    this family besides those of all, `fixed` those that must have one of some values, as llama.cpp computes with it.
    `permuted`: llama.cpp rotates neighbouring pairs of q and k, where transformers rotates halves, so rows move.
    `norm_offset` is added to norm weights, which transformers stores less one. `sliding_pattern`: every so many
    layers one sees the whole context, the others a sliding window, unless the file says otherwise.
    `qkv_bias`: q, k and v always have biases. `fused`: q, k and v are one matrix, gate and up another. `own_head`: there
    is a place for an output matrix that is not the embeddings. `free_head_dim`: heads may be of another size than
    hidden_size / heads. `layer_names` are transformers' names of a layer's parts where they are not Llama's, `scales` the
    numbers that go into GGUF as they are, by GGUF's name. `no_rope_step`: every so many layers one has no RoPE.
    `partial_rotary`: it may be a part of each head that is rotated. `yarn_numbers`: llama.cpp reads all of YaRN's
    numbers, and scales queries up beyond the original context.
    `hidden_over_heads`: for this number of layers llama.cpp scales queries by hidden_size / heads, not head_dim.
    """

    architecture: str
    model_type: str
    defaults: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    settings: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: NOTHING)
    permuted: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    activations: tuple[str, ...] = ("silu", "swish")
    sliding_pattern: int = 0
    qkv_bias: bool = False
    fused: bool = False
    own_head: bool = True
    free_head_dim: bool = True
    rope_types: tuple[str, ...] = ROPE_TYPES
    hidden_over_heads: int = 0
    layer_names: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    scales: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    no_rope_step: int = 0
    partial_rotary: bool = False
    yarn_numbers: bool = False


NO_BIAS: dict[str, tuple[Any, ...]] = {"attention_bias": (False,), "mlp_bias": (False,)}
GEMMA = Family(
    "gemma2", "gemma2",
    defaults={
        "tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    settings=words(
        "query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping _sliding_window_pattern"
    ),
    fixed=NO_BIAS | {"sliding_window_pattern": (2,)},
    post_norms=True, norm_offset=1.0, activations=("gelu_pytorch_tanh",),
    sliding_pattern=2, own_head=False, hidden_over_heads=46,
)  # fmt: skip
SLIDING = words("use_sliding_window max_window_layers")
LLAMA = Family(
    "llama", "llama", permuted=True, settings=words("attention_bias mlp_bias"),
    rope_types=(*ROPE_TYPES, "llama3"), defaults={"sliding_window": None},
)  # fmt: skip
MISTRAL = Family(
    "llama", "mistral", permuted=True, fixed=NO_BIAS, rope_types=(*ROPE_TYPES, "llama3"),
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
)  # fmt: skip
# Code beside the published checkpoints, which is what transformers' own class was made of.
PHI3_CODE = tuple(
    {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"} | more
    for more in ({}, {"AutoTokenizer": "Xenova/gpt-4o"})
)
FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Mistral3ForConditionalGeneration": replace(MISTRAL, architecture="mistral3"),  # its text part, where it is Mistral's
    "Ministral3ForCausalLM": Family(
        "mistral3", "ministral3", permuted=True, yarn_numbers=True, rope_types=("yarn",), fixed=NO_BIAS,
        defaults={
            "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144,
            "sliding_window": None,
        },
    ),
    "Phi3ForCausalLM": Family(
        "phi3", "phi3", fused=True, partial_rotary=True, free_head_dim=False, rope_types=("default",),
        settings=words("partial_rotary_factor"),
        fixed=NO_BIAS | {
            "auto_map": PHI3_CODE, "lm_head_bias": (False,), "full_attn_mod": (1,), "interpolate_factor": (1,),
        },
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "sliding_window": None},
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2", "qwen2", qkv_bias=True, free_head_dim=False, settings=SLIDING, fixed=NO_BIAS,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3", "qwen3", qk_norm=True, settings=SLIDING, fixed=NO_BIAS,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    ),
    "GemmaForCausalLM": Family(
        "gemma", "gemma", norm_offset=1.0, activations=("gelu_pytorch_tanh", "gelu"), own_head=False,
        defaults={"tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 16, "sliding_window": None},
        fixed=NO_BIAS,
    ),
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": replace(
        GEMMA, architecture="gemma3", model_type="gemma3_text", qk_norm=True, sliding_pattern=6, own_head=True,
        hidden_over_heads=62, settings=GEMMA.settings | {"rope_local_base_freq", "sliding_window_pattern"},
        fixed=NO_BIAS | {"attn_logit_softcapping": ()},
        defaults={
            **GEMMA.defaults, "attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 1e6,
            "num_attention_heads": 8, "vocab_size": 262208, "max_position_embeddings": 131072,
        },
    ),
    "SmolLM3ForCausalLM": Family(
        "smollm3", "smollm3", permuted=True, no_rope_step=4, settings=words("no_rope_layers no_rope_layer_interval"),
        fixed=NO_BIAS | {"use_sliding_window": (False,)},
        defaults={
            "tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 2e6, "sliding_window": None,
            "no_rope_layer_interval": 4,
        },
    ),
    "Ernie4_5ForCausalLM": Family(
        "ernie4_5", "ernie4_5", fixed=NO_BIAS | {"use_bias": (False,)},
        defaults={
            "tie_word_embeddings": True, "num_key_value_heads": 2, "head_dim": 128, "rope_theta": 5e5,
            "rms_norm_eps": 1e-5, "sliding_window": None,
        },
    ),
    "HunYuanDenseV1ForCausalLM": Family(
        "hunyuan-dense", "hunyuan_v1_dense", qk_norm=True, fixed=NO_BIAS, settings=words("eod_token_id"),
        layer_names={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        defaults={"rms_norm_eps": 1e-5, "sliding_window": None},
    ),
    "GraniteForCausalLM": Family(
        "granite", "granite", permuted=True,
        settings=words(
            "attention_bias mlp_bias logits_scaling residual_multiplier embedding_multiplier attention_multiplier"
        ),
        scales={
            "logit_scale": "logits_scaling", "residual_scale": "residual_multiplier",
            "embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier",
        },
        defaults={
            "logits_scaling": 1.0, "residual_multiplier": 1.0, "embedding_multiplier": 1.0,
            "attention_multiplier": 1.0, "sliding_window": None,
        },
    ),
}  # fmt: skip
CONVERTER = (
    "llama.cpp's own converter may know it: python convert_hf_to_gguf.py FOLDER --outfile MODEL.gguf, in a clone of"
    " github.com/ggml-org/llama.cpp; any GGUF that it makes works as MODEL"
)


def find_family(config: Config) -> tuple[Config, Family]:
    """The family of a checkpoint, and its config with the family's defaults put in.

    Raises SurgeryError for one that cannot be converted, with what can be done.
    """
    architectures = config.get("architectures", [])
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else architectures or None
    if not isinstance(name, str) or name not in FAMILIES:
        raise SurgeryError(
            f"{config.path}: architectures says {name if isinstance(name, str) else shown(name) if name else 'nothing'},"
            f" which is not supported; supported are {', '.join(FAMILIES)}; {CONVERTER}"
        )
    family = FAMILIES[name]
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
        raise SurgeryError(f"{config.path}: the checkpoint is quantised ({method}); use the float checkpoint instead")
    if (model_type := config.get("model_type", family.model_type)) != family.model_type:
        raise SurgeryError(
            f"{config.path}: architectures says {name}, but model_type {shown(model_type)}, not {family.model_type},"
            " and transformers goes by that; get the file anew"
        )
    config = Config(config.path, {**family.defaults, **config.values})
    key = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    activation = config.get(key, family.activations[0])
    if activation not in family.activations:
        said = activation if isinstance(activation, str) else shown(activation)
        raise SurgeryError(f"{config.path}: {key} is {said}; llama.cpp computes {name} with {family.activations[0]}")
    _check_heads(config, family)
    if family.no_rope_step:
        _check_no_rope(config, family)
    return config, family


def _check_heads(config: Config, family: Family) -> None:
    hidden, head_dim = config.integer("hidden_size"), config.head_dim
    if config.heads % config.kv_heads:
        raise SurgeryError(
            f"{config.path}: num_attention_heads {config.heads} is not a multiple of num_key_value_heads {config.kv_heads}"
        )
    if head_dim % 2:
        raise SurgeryError(f"{config.path}: head_dim is {head_dim}; RoPE needs an even one")
    if not family.free_head_dim and config.heads * head_dim != hidden:
        raise SurgeryError(
            f"{config.path}: head_dim is {head_dim}; llama.cpp computes {family.architecture} with hidden_size /"
            f" num_attention_heads only, {hidden / config.heads:g}"
        )
    if "query_pre_attn_scalar" not in family.settings:
        return
    named, computed = "head_dim", head_dim
    if config.layers == family.hidden_over_heads:
        named, computed = "hidden_size / num_attention_heads", hidden // config.heads
    scale = config.number("query_pre_attn_scalar")
    if scale != computed:
        raise SurgeryError(
            f"{config.path}: query_pre_attn_scalar is {scale:g}; llama.cpp computes {family.architecture} of"
            f" {config.layers} layers with {named}, {computed}"
        )


def _check_no_rope(config: Config, family: Family) -> None:
    """Raise SurgeryError unless the layers without RoPE are those of the family: 0 in config.json's list."""
    step, listed = config.integer("no_rope_layer_interval"), config.get("no_rope_layers")
    known = isinstance(listed, list) and len(listed) == config.layers
    if (listed is None and step != family.no_rope_step) or (
        listed is not None
        and not (known and all(entry == (number % family.no_rope_step != 0) for number, entry in enumerate(listed, 1)))
    ):
        raise SurgeryError(
            f"{config.path}: no_rope_layers is {shown(listed)}, no_rope_layer_interval {step}; llama.cpp computes"
            f" {family.architecture} without RoPE in every {family.no_rope_step}th layer"
        )
