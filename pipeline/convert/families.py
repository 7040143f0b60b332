"""The model families that can be converted, by the `architectures` entry of config.json."""

from dataclasses import dataclass

from pipeline.convert.config import Config
from pipeline.errors import SurgeryError


@dataclass(frozen=True)
class Family:
    """What sets a family apart. `architecture` is GGUF's name of it.

    `permuted`: llama.cpp rotates neighbouring pairs of q and k, where transformers rotates halves, so rows move.
    `norm_offset` is added to norm weights, which transformers stores less one. `sliding_pattern`: every so many
    layers one sees the whole context, the others a sliding window, as llama.cpp takes for granted.
    """

    architecture: str
    permuted: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    tied_by_default: bool = False
    activations: tuple[str, ...] = ("silu", "swish")
    sliding_pattern: int = 0


GEMMA_ACTIVATIONS = ("gelu_pytorch_tanh",)
FAMILIES = {
    "LlamaForCausalLM": Family("llama", permuted=True),
    "MistralForCausalLM": Family("llama", permuted=True),
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True),
    "Gemma2ForCausalLM": Family(
        "gemma2", post_norms=True, norm_offset=1.0, tied_by_default=True,
        activations=GEMMA_ACTIVATIONS, sliding_pattern=2,
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3", qk_norm=True, post_norms=True, norm_offset=1.0, tied_by_default=True,
        activations=GEMMA_ACTIVATIONS, sliding_pattern=6,
    ),
}  # fmt: skip


def find_family(config: Config) -> Family:
    """The family of a checkpoint. Raises SurgeryError for one that cannot be converted, with what can be done."""
    architectures = config.get("architectures", [])
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name not in FAMILIES:
        raise SurgeryError(
            f"{config.path}: architectures says {name or 'nothing'}, which is not supported; supported are"
            f" {', '.join(FAMILIES)}; any GGUF that llama.cpp's own converter made works as MODEL, too"
        )
    family = FAMILIES[name]
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
        raise SurgeryError(f"{config.path}: the checkpoint is quantised ({method}); use the float checkpoint instead")
    activation = config.get("hidden_activation", config.get("hidden_act", family.activations[0]))
    if activation not in family.activations:
        raise SurgeryError(
            f"{config.path}: hidden_act is {activation}; llama.cpp computes {name} with {family.activations[0]}"
        )
    _check_attention(config, family)
    return family


def _check_attention(config: Config, family: Family) -> None:
    if config.heads % config.kv_heads:
        raise SurgeryError(
            f"{config.path}: num_attention_heads {config.heads} is not a multiple of num_key_value_heads {config.kv_heads}"
        )
    if not family.sliding_pattern:
        return
    count = config.integer("num_hidden_layers")
    expected = [
        "full_attention" if number % family.sliding_pattern == 0 else "sliding_attention"
        for number in range(1, count + 1)
    ]
    if config.get("layer_types", expected) != expected:
        raise SurgeryError(
            f"{config.path}: layer_types is not the pattern of {family.architecture} that llama.cpp computes"
        )
    scale = config.get("query_pre_attn_scalar", config.head_dim)
    if scale != config.head_dim:
        raise SurgeryError(
            f"{config.path}: query_pre_attn_scalar is {scale}; llama.cpp computes with head_dim, {config.head_dim}"
        )
