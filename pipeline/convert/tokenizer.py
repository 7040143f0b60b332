"""A checkpoint's tokenizer as GGUF metadata (`tokenizer.*`): its kind, its vocabulary, its special tokens."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys, SpecialVocab

from pipeline.convert.byte_level import byte_level_vocabulary
from pipeline.convert.config import read_json_if_there
from pipeline.convert.pre_tokenizer import find_pre_tokenizer, flatten
from pipeline.convert.sentence_piece import from_model_file, from_tokenizer_json, model_adds_space_prefix
from pipeline.convert.vocabulary import Vocabulary, add_added_tokens, pad
from pipeline.errors import SurgeryError
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry

SPECIAL_TOKEN_KEYS = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
    "eot": Keys.Tokenizer.EOT_ID,
    "eom": Keys.Tokenizer.EOM_ID,
}


def tokenizer_metadata(folder: Path, vocab_size: int, pre: str | None) -> Iterator[MetadataEntry]:
    """The tokenizer in `folder`, its vocabulary filled up to `vocab_size` entries, the rows of the embeddings.

    `pre` overrides what is found for `tokenizer.ggml.pre`. Raises SurgeryError when there is no tokenizer, when it is
    of an unknown kind, or when it has more tokens than `vocab_size`.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json_if_there(path)
    settings = read_json_if_there(folder / "tokenizer_config.json")
    byte_level = is_byte_level(tokenizer)
    vocabulary = _vocabulary(folder, tokenizer, byte_level)
    add_added_tokens(vocabulary, folder, tokenizer, settings, vocab_size)
    tokens, scores, types = pad(vocabulary, vocab_size, folder)
    yield _string(Keys.Tokenizer.MODEL, "gpt2" if byte_level else "llama")
    found = pre or (find_pre_tokenizer(path, tokenizer) if byte_level else "default")
    yield _string(Keys.Tokenizer.PRE, found)
    yield metadata_entry(Keys.Tokenizer.LIST, tokens, GGUFValueType.STRING)
    if not byte_level:
        yield metadata_entry(Keys.Tokenizer.SCORES, scores, GGUFValueType.FLOAT32)
    yield metadata_entry(Keys.Tokenizer.TOKEN_TYPE, types, GGUFValueType.INT32)
    special = special_vocabulary(folder, vocab_size, byte_level)
    ids = special.special_token_ids | named_tokens(tokens, settings)
    if byte_level:
        yield metadata_entry(Keys.Tokenizer.MERGES, special.merges, GGUFValueType.STRING)
    else:
        yield _flag(Keys.Tokenizer.ADD_PREFIX, adds_space_prefix(folder, tokenizer))
    for kind, key in SPECIAL_TOKEN_KEYS.items():
        if kind in ids:
            yield metadata_entry(key, ids[kind], GGUFValueType.UINT32)
    adds = special.add_special_token
    yield _flag(Keys.Tokenizer.ADD_BOS, adds.get("bos", adds_bos_by_default(tokenizer, settings)))
    if "eos" in adds:
        yield _flag(Keys.Tokenizer.ADD_EOS, adds["eos"])
    yield from chat_templates(special.chat_template)


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    steps = flatten(tokenizer.get("pre_tokenizer"))
    return any(step.get("type") == "ByteLevel" for step in steps)


def _vocabulary(folder: Path, tokenizer: dict[str, Any], byte_level: bool) -> Vocabulary:
    path = folder / "tokenizer.json"
    if tokenizer and tokenizer.get("model", {}).get("type") != "BPE" and not (folder / "tokenizer.model").is_file():
        raise SurgeryError(
            f"{path}: a tokenizer of type {tokenizer.get('model', {}).get('type')} is not supported; only BPE is"
        )
    if byte_level:
        return byte_level_vocabulary(path, tokenizer)
    if (folder / "tokenizer.model").is_file():
        return from_model_file(folder / "tokenizer.model")
    if tokenizer:
        return from_tokenizer_json(path, tokenizer)
    raise SurgeryError(f"{folder}: has no tokenizer; expected tokenizer.json or tokenizer.model")


def special_vocabulary(folder: Path, vocab_size: int, byte_level: bool) -> SpecialVocab:
    """Special token ids, add-flags, merges and chat template, as the gguf package reads them."""
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of what is an error here, or harmless
    try:
        special = SpecialVocab(folder, load_merges=byte_level, n_vocab=vocab_size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SurgeryError(f"{folder}: the tokenizer's files contradict each other: {error}; get them anew") from None
    if special.chat_template is None and (folder / "chat_template.jinja").is_file():
        special.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return special


def named_tokens(tokens: list[str], settings: dict[str, Any]) -> dict[str, int]:
    """The ids of the special tokens that tokenizer_config.json names; transformers believes it before config.json."""
    numbers = {text: number for number, text in enumerate(tokens)}
    named = {}
    for kind in ("bos", "eos", "unk", "pad"):
        entry = settings.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if text in numbers:
            named[kind] = numbers[text]
    return named


def adds_space_prefix(folder: Path, tokenizer: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before the text."""
    if tokenizer:
        normalizers = flatten(tokenizer.get("normalizer"), "normalizers")
        splitters = flatten(tokenizer.get("pre_tokenizer"))
        return any(step.get("type") == "Prepend" for step in normalizers) or any(
            step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in splitters
        )
    return model_adds_space_prefix(folder / "tokenizer.model")


def adds_bos_by_default(tokenizer: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether BOS is added where no file says so: by transformers' classes for Llama, and by SentencePiece models."""
    return not tokenizer or str(settings.get("tokenizer_class")) in ("LlamaTokenizer", "LlamaTokenizerFast")


def chat_templates(templates: Any) -> Iterator[MetadataEntry]:
    """The chat template, or several by name, of which `default` comes first."""
    if isinstance(templates, str):
        templates = [{"name": "default", "template": templates}]
    for entry in templates or []:
        if entry["name"] == "default":
            yield _string(Keys.Tokenizer.CHAT_TEMPLATE, entry["template"])
        else:
            yield _string(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=entry["name"]), entry["template"])
    if names := [entry["name"] for entry in templates or [] if entry["name"] != "default"]:
        yield metadata_entry(Keys.Tokenizer.CHAT_TEMPLATES, names, GGUFValueType.STRING)


def _string(key: str, value: str) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.STRING)


def _flag(key: str, value: bool) -> MetadataEntry:
    return metadata_entry(key, value, GGUFValueType.BOOL)
