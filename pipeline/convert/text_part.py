"""The text part of checkpoints that also see pictures: its config and its weights, under the names of the text-only class."""

from pipeline.convert.config import Config, shown, words
from pipeline.convert.settings import HARMLESS
from pipeline.convert.stored_tensor import StoredTensor
from pipeline.errors import SurgeryError

# architecture -> by model_type of its text part, that one's; the first is what is there when none is said
TEXT_PARTS = {
    "Gemma3ForConditionalGeneration": {"gemma3_text": "Gemma3ForCausalLM"},
    "Mistral3ForConditionalGeneration": {
        "mistral": "Mistral3ForConditionalGeneration",
        "ministral3": "Ministral3ForCausalLM",
    },
}
OUTER = words(
    "architectures model_type text_config vision_config mm_tokens_per_image boi_token_index eoi_token_index"
    " image_token_index image_token_id projector_hidden_act vision_feature_layer multimodal_projector_bias"
    " spatial_merge_size"
)
SHARED = words("bos_token_id eos_token_id pad_token_id tie_word_embeddings quantization_config")
PICTURES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
# What stands before a tensor's name -> what the text-only class has there, as transformers 4 and 5 wrote it
PREFIXES = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.lm_head.": "lm_head."}


def text_config(config: Config) -> Config:
    """config.json of the text part alone; `config` itself for a model of text. Raises SurgeryError for unknown keys."""
    match config.get("architectures"):
        case [str(name)] if name in TEXT_PARTS:
            pass
        case _:
            return config
    outer = Config(config.path, config.values)
    for key, value in outer.values.items():
        if value is not None and key not in OUTER | SHARED | HARMLESS:
            raise SurgeryError(f"{config.path}: {key} is a setting that is not known for {name}")
    shared = {key: outer.values[key] for key in SHARED if key in outer.values}
    text, parts = outer.table("text_config"), TEXT_PARTS[name]
    kind = text.get("model_type", next(iter(parts)))
    if kind not in parts:
        raise SurgeryError(
            f"{config.path}: text_config's model_type is {shown(kind)}; supported for {name} are {', '.join(parts)}"
        )
    return Config(config.path, {**shared, **text, "architectures": [parts[kind]]})


def text_weights(weights: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the text part alone, by the names of the text-only class."""
    found = {}
    for name, tensor in weights.items():
        if not name.startswith(PICTURES):
            prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
            found[PREFIXES.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return found
