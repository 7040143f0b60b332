"""Which keys of config.json are known: every other one that says something is refused by name."""

from typing import Any

from pipeline.convert.config import Config, shown, words
from pipeline.convert.families import Family
from pipeline.errors import SurgeryError

# Written, or checked against the tensors, for every family.
READ = words(
    "architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    " num_key_value_heads head_dim max_position_embeddings rms_norm_eps hidden_act hidden_activation"
    " tie_word_embeddings rope_theta rope_scaling rope_parameters original_max_position_embeddings sliding_window"
    " layer_types bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id mask_token_id"
)
# Without effect on what a trained model computes of a text.
HARMLESS = words(
    # how it was made, trained, saved, called
    "transformers_version torch_dtype dtype _name_or_path name_or_path initializer_range attention_dropout"
    " hidden_dropout resid_pdrop embd_pdrop classifier_dropout pretraining_tp use_cache gradient_checkpointing"
    " neftune_noise_alpha _commit_hash _attn_implementation attn_implementation _attn_implementation_autoset"
    " _attn_implementation_internal _flash_attn_2_enabled use_flash_attention use_flash_attn _experts_implementation"
    " unsloth_version unsloth_fixed model_name transformers.js_config _from_model_config tokenizer_class"
    " tokenizer_name model_max_length max_sequence_length chunk_size_feed_forward torchscript use_bfloat16"
    # what it returns
    " return_dict output_attentions output_hidden_states output_scores return_dict_in_generate"
    # heads for other tasks
    " id2label label2id num_labels problem_type finetuning_task task_specific_params prefix"
    # how generate() chooses, in files of transformers 4.30 and before
    " max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty"
    " temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size"
    " encoder_no_repeat_ngram_size num_return_sequences remove_invalid_values decoder_start_token_id"
    " exponential_decay_length_penalty cache_implementation is_decoder is_llama_config"
)
# key -> what it may be: what every family computes with, whether or not it is said
FIXED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,), "pruned_heads": ({},), "partial_rotary_factor": (1.0,),
    "use_sliding_window": (False,), "attention_bias": (False,), "mlp_bias": (False,), "bad_words_ids": (),
    "suppress_tokens": (), "begin_suppress_tokens": (), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "use_bidirectional_attention": (False,), "is_causal": (True,), "rope_interleaved": (False,), "use_mrope": (False,), "auto_map": ({},), "quantization_config": ({},),
}  # fmt: skip


def check_settings(config: Config, family: Family) -> None:
    """Raise SurgeryError for the first key of config.json that is not known, or has a value that is not computed."""
    known = READ | HARMLESS | family.settings
    for key, value in config.values.items():
        allowed = family.fixed.get(key)
        if value is None or (allowed is None and key in known):
            continue
        allowed = FIXED.get(key) if allowed is None else allowed
        if allowed is None:
            raise SurgeryError(
                f"{config.path}: {key} is {shown(value)}, a setting that is not known for {family.model_type};"
                " if it changes nothing that the model computes, take it out of the file"
            )
        if not any(value == other and isinstance(value, type(other)) for other in (*allowed, *map(_whole, allowed))):
            raise SurgeryError(
                f"{config.path}: {key} is {shown(value)}; llama.cpp computes {family.architecture} as if it were"
                f" {shown(allowed[0]) if allowed else 'not there'}"
            )


def _whole(value: Any) -> Any:
    """1 for 1.0, which JSON may hold for one another."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
