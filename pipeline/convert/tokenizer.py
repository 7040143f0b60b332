"""A checkpoint's tokenizer as GGUF metadata (`tokenizer.*`): its kind, its vocabulary, its special tokens."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys, TokenType

from pipeline.convert.byte_level import byte_level_vocabulary, is_byte_level, merges
from pipeline.convert.chat_template import chat_templates
from pipeline.convert.pre_tokenizer import find_pre_tokenizer
from pipeline.convert.sentence_piece import adds_space_prefix, check_steps, from_model_file, from_tokenizer_json
from pipeline.convert.special_tokens import special_tokens
from pipeline.convert.tokenizer_files import TokenizerFiles, read_tokenizer_files
from pipeline.convert.vocabulary import Vocabulary, add_added_tokens, pad
from pipeline.errors import SurgeryError
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry

TEXT_TYPES = (TokenType.NORMAL, TokenType.BYTE)


def tokenizer_metadata(
    folder: Path, vocab_size: int, pre: str | None, config: Mapping[str, Any] | None = None, name: str = ""
) -> Iterator[MetadataEntry]:
    """The tokenizer in `folder`, its vocabulary filled up to `vocab_size` entries, the rows of the embeddings.

    `pre` overrides what is found for `tokenizer.ggml.pre`; `config` is config.json's object, `name` what the model will
    be called. Raises SurgeryError when there is no tokenizer, when llama.cpp would give other tokens, or when it has more
    tokens than `vocab_size`.
    """
    files = read_tokenizer_files(folder, config or {})
    byte_level = is_byte_level(files)
    vocabulary = _vocabulary(files, byte_level)
    add_added_tokens(vocabulary, files, vocab_size, byte_level=byte_level, name=name)
    tokens = pad(vocabulary, vocab_size, files)
    texts = [token.text for token in tokens]
    yield metadata_entry(Keys.Tokenizer.MODEL, "gpt2" if byte_level else "llama", GGUFValueType.STRING)
    found = pre or (find_pre_tokenizer(files.path, files.tokenizer) if byte_level else "default")
    yield metadata_entry(Keys.Tokenizer.PRE, found, GGUFValueType.STRING)
    yield metadata_entry(Keys.Tokenizer.LIST, texts, GGUFValueType.STRING)
    if not byte_level:
        yield metadata_entry(Keys.Tokenizer.SCORES, [token.score for token in tokens], GGUFValueType.FLOAT32)
    yield metadata_entry(Keys.Tokenizer.TOKEN_TYPE, [int(token.type) for token in tokens], GGUFValueType.INT32)
    if byte_level:
        yield metadata_entry(Keys.Tokenizer.MERGES, merges(files), GGUFValueType.STRING)
    else:
        yield metadata_entry(Keys.Tokenizer.ADD_PREFIX, adds_space_prefix(files), GGUFValueType.BOOL)
    yield from special_tokens(files, texts, {i for i, token in enumerate(tokens) if token.type in TEXT_TYPES})
    yield from chat_templates(files)


def _vocabulary(files: TokenizerFiles, byte_level: bool) -> Vocabulary:
    model_file = files.folder / "tokenizer.model"
    if files.tokenizer and files.model.get("type") != "BPE" and not model_file.is_file():
        raise SurgeryError(f"{files.path}: a tokenizer of type {files.model.get('type')} is not supported; only BPE is")
    if byte_level:
        return byte_level_vocabulary(files)
    if model_file.is_file():
        if files.tokenizer:
            check_steps(files)
        return from_model_file(model_file)
    if files.tokenizer:
        return from_tokenizer_json(files)
    raise SurgeryError(f"{files.folder}: has no tokenizer; expected tokenizer.json or tokenizer.model")
