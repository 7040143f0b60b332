"""config.json as GGUF metadata: `<architecture>.*` and `general.*`."""

from collections.abc import Iterator

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, Keys, LlamaFileType, size_label

from pipeline.convert.config import Config
from pipeline.convert.families import Family
from pipeline.convert.rope import Rope
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry

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

    yield integer(llm.BLOCK_COUNT, config.integer("num_hidden_layers"))
    yield integer(llm.CONTEXT_LENGTH, config.integer("max_position_embeddings"))
    yield integer(llm.EMBEDDING_LENGTH, config.integer("hidden_size"))
    yield integer(llm.FEED_FORWARD_LENGTH, config.integer("intermediate_size"))
    yield integer(attention.HEAD_COUNT, config.heads)
    yield integer(attention.HEAD_COUNT_KV, config.kv_heads)
    yield number(attention.LAYERNORM_RMS_EPS, config.number("rms_norm_eps", 1e-6))
    yield number(Keys.Rope.FREQ_BASE, rope.base)
    if config.get("head_dim"):
        yield integer(attention.KEY_LENGTH, config.head_dim)
        yield integer(attention.VALUE_LENGTH, config.head_dim)
    if arch == "llama":
        yield integer(llm.VOCAB_SIZE, config.integer("vocab_size"))
        yield integer(Keys.Rope.DIMENSION_COUNT, config.head_dim)
    if family.sliding_pattern:
        yield integer(attention.SLIDING_WINDOW, config.integer("sliding_window"))
        if rope.local_base:
            yield number(Keys.Rope.FREQ_BASE_SWA, rope.local_base)
        for key, name in (
            (llm.ATTN_LOGIT_SOFTCAPPING, "attn_logit_softcapping"),
            (llm.FINAL_LOGIT_SOFTCAPPING, "final_logit_softcapping"),
        ):
            if config.get(name):
                yield number(key, config.number(name))
    yield from _rope_scaling(arch, config, rope)


def _rope_scaling(arch: str, config: Config, rope: Rope) -> Iterator[MetadataEntry]:
    if rope.kind not in ("linear", "yarn"):
        return
    scaling = Config(config.path, rope.scaling)
    yield _string(Keys.Rope.SCALING_TYPE.format(arch=arch), rope.kind)
    yield _number(Keys.Rope.SCALING_FACTOR.format(arch=arch), scaling.number("factor"))
    if rope.kind == "linear":
        return
    context = scaling.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    yield _integer(Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch), context)
    for key, name in (
        (Keys.Rope.SCALING_YARN_ATTN_FACTOR, "attention_factor"),
        (Keys.Rope.SCALING_YARN_BETA_FAST, "beta_fast"),
        (Keys.Rope.SCALING_YARN_BETA_SLOW, "beta_slow"),
    ):
        if scaling.get(name) is not None:
            yield _number(key.format(arch=arch), scaling.number(name))


def _string(key: str, value: str) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.STRING)


def _integer(key: str, value: int) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.UINT32)


def _number(key: str, value: float) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.FLOAT32)
