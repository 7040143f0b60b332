"""config.json as GGUF metadata: `<architecture>.*` and `general.*`."""

from collections.abc import Iterator

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, Keys, LlamaFileType, size_label

from pipeline.convert.config import Config
from pipeline.convert.families import Family
from pipeline.convert.rope import QUERY_GROWTH, Rope
from pipeline.convert.window import context_length, sliding_layers
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry

# c tanh(x / c) is x, to the last digit of float32, for a c this much larger than any x; llama.cpp caps in any case.
NO_SOFT_CAP = 1e9
FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
}


def general_metadata(
    family: Family, name: str, repository: str | None, kind: GGMLQuantizationType, parameters: int
) -> Iterator[MetadataEntry]:
    """`general.*`: what it is called, its size, where it is from (a hub id, if any) and the type of its matrices."""
    yield _string(Keys.General.ARCHITECTURE, family.architecture)
    yield _string(Keys.General.TYPE, "model")
    yield _string(Keys.General.NAME, name)
    yield _string(Keys.General.SIZE_LABEL, size_label(parameters, parameters, 0, 0))
    if repository:
        yield _string(Keys.General.SOURCE_REPO_URL, f"https://huggingface.co/{repository}")
    yield _integer(Keys.General.FILE_TYPE, FILE_TYPES[kind])
    yield _integer(Keys.General.QUANTIZATION_VERSION, GGML_QUANT_VERSION)


def hyperparameters(config: Config, family: Family, rope: Rope) -> Iterator[MetadataEntry]:
    """`<architecture>.*`, under the names that the gguf package gives. Raises SurgeryError naming a key of config.json."""
    arch = family.architecture
    llm, attention = Keys.LLM, Keys.Attention

    def integer(key: str, value: int) -> MetadataEntry:
        return _integer(key.format(arch=arch), value)

    def number(key: str, value: float) -> MetadataEntry:
        return _number(key.format(arch=arch), value)

    yield integer(llm.BLOCK_COUNT, config.layers)
    yield integer(llm.CONTEXT_LENGTH, context_length(config, family))
    yield integer(llm.EMBEDDING_LENGTH, config.integer("hidden_size"))
    yield integer(llm.FEED_FORWARD_LENGTH, config.integer("intermediate_size"))
    yield integer(attention.HEAD_COUNT, config.heads)
    yield integer(attention.HEAD_COUNT_KV, config.kv_heads)
    yield number(attention.LAYERNORM_RMS_EPS, config.number("rms_norm_eps", 1e-6))
    yield number(Keys.Rope.FREQ_BASE, rope.base)
    if config.get("head_dim"):
        yield integer(attention.KEY_LENGTH, config.head_dim)
        yield integer(attention.VALUE_LENGTH, config.head_dim)
    if family.permuted:  # as llama.cpp's converter has it for all that it treats as Llama
        yield integer(llm.VOCAB_SIZE, config.integer("vocab_size"))
    if family.permuted or family.partial_rotary:
        yield integer(Keys.Rope.DIMENSION_COUNT, rope.dimensions)
    for name, key in family.scales.items():
        yield _number(f"{arch}.{name}", config.number(key))
    if family.sliding_pattern:
        yield from _windows(config, family, rope)
    if arch == "phi3":  # llama.cpp computes no window, and knows Phi-4 by one of 0
        window = config.integer("sliding_window") if config.get("sliding_window") is not None else 0
        yield integer(attention.SLIDING_WINDOW, window)
        yield integer(Keys.Rope.SCALING_ORIG_CTX_LEN, rope.original_context)
    if rope.kind in ("linear", "yarn"):
        yield _string(Keys.Rope.SCALING_TYPE.format(arch=arch), rope.kind)
        yield number(Keys.Rope.SCALING_FACTOR, rope.factor)
    if rope.kind == "yarn":
        yield integer(Keys.Rope.SCALING_ORIG_CTX_LEN, rope.original_context)
        if rope.attention_factor != 1.0:
            yield number(Keys.Rope.SCALING_ATTN_FACTOR, rope.attention_factor)
    if family.yarn_numbers:
        for key, name in (
            (Keys.Rope.SCALING_YARN_BETA_FAST, "beta_fast"),
            (Keys.Rope.SCALING_YARN_BETA_SLOW, "beta_slow"),
        ):
            if rope.scaling.get(name) is not None:
                yield number(key, rope.scaling.number(name))
        if rope.log_multiplier:
            yield number(Keys.Rope.SCALING_YARN_LOG_MUL, rope.log_multiplier)
        yield number(attention.TEMPERATURE_SCALE, rope.scaling.number(QUERY_GROWTH))


def _windows(config: Config, family: Family, rope: Rope) -> Iterator[MetadataEntry]:
    """What Gemma has: windows, in layers of a pattern, and soft caps of attention and logits."""
    arch, llm = family.architecture, Keys.LLM
    sliding = sliding_layers(config, family)
    if any(sliding) or arch != "gemma3":  # which has no windows without that key; Gemma 2 has one that all fits in
        window = config.integer("sliding_window" if any(sliding) else "max_position_embeddings")
        yield _integer(Keys.Attention.SLIDING_WINDOW.format(arch=arch), window)
    if any(sliding) and sliding != [number % family.sliding_pattern != 0 for number in range(1, config.layers + 1)]:
        key = Keys.Attention.SLIDING_WINDOW_PATTERN.format(arch=arch)
        yield metadata_entry(key, sliding, GGUFValueType.BOOL)
    if rope.local_base:
        yield _number(Keys.Rope.FREQ_BASE_SWA.format(arch=arch), rope.local_base)
    for key, name in (
        (llm.ATTN_LOGIT_SOFTCAPPING, "attn_logit_softcapping"),
        (llm.FINAL_LOGIT_SOFTCAPPING, "final_logit_softcapping"),
    ):
        if config.get(name) is not None:
            yield _number(key.format(arch=arch), config.number(name))
        elif family.defaults[name] is not None:
            yield _number(key.format(arch=arch), NO_SOFT_CAP)


def _string(key: str, value: str) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.STRING)


def _integer(key: str, value: int) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.UINT32)


def _number(key: str, value: float) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.FLOAT32)
