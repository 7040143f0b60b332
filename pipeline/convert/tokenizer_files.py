"""A checkpoint's tokenizer files, read together, and which of their keys are known."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.convert.config import read_json_if_there, shown, words
from pipeline.errors import SurgeryError

ROLES = ("bos", "eos", "unk", "sep", "pad", "mask", "cls")
TOKENIZER_KEYS = words("version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model")
MODEL_KEYS = words(
    "type vocab merges unk_token fuse_unk byte_fallback ignore_merges dropout continuing_subword_prefix"
    " end_of_word_suffix"
)
SETTINGS_READ = words(
    "add_bos_token add_eos_token add_prefix_space additional_special_tokens extra_special_tokens added_tokens_decoder"
    " chat_template"
)
SETTINGS_HARMLESS = words(
    "tokenizer_class legacy model_max_length max_length max_len clean_up_tokenization_spaces padding_side"
    " truncation_side use_default_system_prompt spaces_between_special_tokens processor_class errors name_or_path"
    " special_tokens_map_file tokenizer_file vocab_file merges_file stride truncation truncation_strategy padding"
    " truncation_max_length padding_max_length pad_to_multiple_of pad_token_type_id return_token_type_ids"
    " model_input_names device_map backend is_local local_files_only trust_remote_code use_fast fast init_inputs"
    " transformers_version vocab_size model_type response_schema token_type_ids_pattern unsloth_version"
)
SETTINGS_FIXED: dict[str, tuple[Any, ...]] = {
    "split_special_tokens": (False,), "sp_model_kwargs": ({},), "do_lower_case": (False,), "auto_map": ({},),
    "add_dummy_prefix": (True,), "model_specific_special_tokens": ({},), "from_slow": (False, True),
    "add_sep_token": (False,),
}  # fmt: skip
# Sampling and lengths are chosen by whoever runs the model; what forbids or forces tokens is refused.
GENERATION_KEYS = words(
    "_from_model_config transformers_version bos_token_id eos_token_id pad_token_id decoder_start_token_id do_sample"
    " temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff top_h repetition_penalty"
    " encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size"
    " diversity_penalty penalty_alpha num_beams num_beam_groups num_return_sequences early_stopping max_length"
    " max_new_tokens min_length min_new_tokens max_time use_cache cache_implementation cache_config"
    " output_attentions output_hidden_states output_scores output_logits return_dict_in_generate trust_remote_code"
    " return_legacy_cache remove_invalid_values renormalize_logits low_memory use_model_defaults disable_compile"
    " prefill_chunk_size assistant_early_exit assistant_confidence_threshold num_assistant_tokens"
    " num_assistant_tokens_schedule assistant_lookbehind target_lookbehind prompt_lookup_num_tokens"
    " max_matching_ngram_size is_assistant compile_config chat_format max_window_size stop_words_type"
    " user_token_id assistant_token_id"
)


@dataclass(frozen=True)
class AddedToken:
    """A token beside the model's own: its text, whether it is a control token, and what transformers does around it.

    `strips` is lstrip, rstrip, single_word, nothing, or None in a file that says no such thing.
    """

    number: int
    text: str
    special: bool
    strips: str | None


@dataclass(frozen=True)
class TokenizerFiles:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json and generation_config.json.

    Each is empty when it is not there; `config` is config.json's. Make one with `read_tokenizer_files`.
    """

    folder: Path
    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    special_map: dict[str, Any]
    added: dict[str, Any]
    generation: dict[str, Any]
    config: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def model(self) -> dict[str, Any]:
        model = self.tokenizer.get("model", {})
        return model if isinstance(model, dict) else {}

    def role(self, role: str) -> str | None:
        """The text of the token that is called `<role>_token`, by the file that transformers believes."""
        legacy = self.special_map if "added_tokens_decoder" not in self.settings else {}
        for values in (legacy, self.settings, self.special_map):
            entry = values.get(f"{role}_token")
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str) and text:
                return text
        return None

    def special_texts(self) -> set[str]:
        """The texts that any of the files declares to be special tokens."""
        texts = {text for role in ROLES if (text := self.role(role)) is not None}
        for values in (self.settings, self.special_map):
            entries = [value for key, value in values.items() if key.endswith("_token")]
            for key in ("additional_special_tokens", "extra_special_tokens"):
                several = values.get(key) or []
                entries += several.values() if isinstance(several, dict) else several
            texts |= {text for entry in entries if isinstance(text := _content(entry), str)}
        return texts

    def added_tokens(self) -> Iterator[AddedToken]:
        """The added tokens of the files that may hold them, the most telling one last; special if any file says so."""
        special = self.special_texts()
        for text, number in self.added.items():
            yield self._added("added_tokens.json", number, {"content": text}, special)
        for number, entry in (self.settings.get("added_tokens_decoder") or {}).items():
            yield self._added("tokenizer_config.json", int(number), entry, special)
        for entry in self.tokenizer.get("added_tokens") or []:
            yield self._added("tokenizer.json", entry["id"], entry, special)

    def _added(self, file: str, number: Any, entry: dict[str, Any], special: set[str]) -> AddedToken:
        text = entry["content"]
        if type(number) is not int or number < 0 or not isinstance(text, str):
            raise SurgeryError(f"{self.folder / file}: the added token {shown(text)} has the id {shown(number)}")
        strips = next(
            (key for key in ("lstrip", "rstrip", "single_word") if entry.get(key)), "" if len(entry) > 1 else None
        )
        return AddedToken(number, text, bool(entry.get("special")) or text in special, strips)


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def read_tokenizer_files(folder: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """Read the files and check their keys. Raises SurgeryError for a key that is not known, with its name and value."""

    def read(name: str) -> dict[str, Any]:
        return read_json_if_there(folder / f"{name}.json")

    files = TokenizerFiles(
        folder,
        tokenizer=read("tokenizer"),
        settings=read("tokenizer_config"),
        special_map=read("special_tokens_map"),
        added=read("added_tokens"),
        generation=read("generation_config"),
        config=config,
    )
    _check(files.path, "", files.tokenizer, TOKENIZER_KEYS)
    _check(files.path, "model.", files.model, MODEL_KEYS)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if files.model.get(key):
            raise SurgeryError(f"{files.path}: model.{key} is {shown(files.model[key])}; llama.cpp has no such thing")
    tokens = {key for values in (files.settings, files.special_map) for key in values if key.endswith("_token")}
    _check(
        folder / "tokenizer_config.json", "", files.settings, SETTINGS_READ | SETTINGS_HARMLESS | tokens, SETTINGS_FIXED
    )
    _check(
        folder / "special_tokens_map.json",
        "",
        files.special_map,
        tokens | {"additional_special_tokens", "extra_special_tokens"},
    )
    _check(folder / "generation_config.json", "", files.generation, GENERATION_KEYS)
    return files


def _check(
    path: Path, prefix: str, values: dict[str, Any], known: frozenset[str] | set[str],
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
) -> None:  # fmt: skip
    for key, value in values.items():
        if value is None or key in known or value in (fixed or {}).get(key, ()):
            continue
        raise SurgeryError(
            f"{path}: {prefix}{key} is {shown(value)}, which is not known here or not to llama.cpp; if it changes"
            " nothing that the model reads or says, take it out of the file"
        )
