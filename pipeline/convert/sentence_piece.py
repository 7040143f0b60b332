"""SentencePiece BPE vocabularies, from tokenizer.model or from the tokenizer.json that was made of one."""

import re
from pathlib import Path
from typing import Any

from gguf import TokenType

from pipeline.convert.byte_level import merge_pairs, model_vocabulary
from pipeline.convert.config import shown
from pipeline.convert.pre_tokenizer import flatten
from pipeline.convert.sentence_piece_file import Settings, read_settings
from pipeline.convert.tokenizer_files import TokenizerFiles
from pipeline.convert.vocabulary import SPACE, Token, Vocabulary
from pipeline.errors import SurgeryError
from pipeline.extras import require

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# The steps of a tokenizer.json that SentencePiece BPE has, and llama.cpp with it.
STEPS: dict[str, list[dict[str, Any]]] = {
    "normalizer": [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ],
    "pre_tokenizer": [
        {"type": "Metaspace", "replacement": SPACE},
        # finds nothing: the normalizer has replaced all spaces
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    ],
    "decoder": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {"type": "Metaspace", "replacement": SPACE},
    ],
}


def from_model_file(path: Path) -> Vocabulary:
    """The pieces of a tokenizer.model. Raises SurgeryError when it is damaged, of a kind that llama.cpp has not, or the
    package is missing.
    """
    processor = load_processor(path)
    user_defined = set(checked_settings(path).user_defined)
    kinds = (
        (processor.IsUnknown, TokenType.UNKNOWN),
        (processor.IsControl, TokenType.CONTROL),
        (processor.IsUnused, TokenType.UNUSED),
        (processor.IsByte, TokenType.BYTE),
    )
    vocabulary = {}
    for number in range(processor.vocab_size()):
        kind, text = next((kind for test, kind in kinds if test(number)), TokenType.NORMAL), processor.IdToPiece(number)
        if kind == TokenType.NORMAL and text in user_defined:
            kind, text = TokenType.USER_DEFINED, text.replace(SPACE, " ")
        vocabulary[number] = Token(text, kind, processor.GetScore(number))
    return vocabulary


def checked_settings(path: Path) -> Settings:
    """The settings of a tokenizer.model. Raises SurgeryError where llama.cpp's SPM tokenizer would give other ids."""
    settings = read_settings(path)
    problems = (
        (settings.model_type != "BPE", f"is of type {settings.model_type}, not BPE"),
        (not settings.byte_fallback, "has no byte fallback"),
        (bool(settings.normalizer), f"changes text by the normaliser {settings.normalizer}"),
        (settings.removes_spaces, "removes extra spaces"),
        (not settings.escapes_spaces, "does not write spaces as its own character"),
        (settings.space_as_suffix, "puts spaces behind words"),
        (
            settings.adds_space and bool(settings.user_defined),
            f"has user-defined symbols ({shown(settings.user_defined[:1])}) and puts a space before a text",
        ),
    )
    for found, what in problems:
        if found:
            raise SurgeryError(f"{path}: {what}; llama.cpp's tokenizer for SentencePiece would give other tokens")
    return settings


def load_processor(path: Path) -> Any:
    package = require("sentencepiece", "hub", f"{path}: a SentencePiece tokenizer")
    processor = package.SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
    except (RuntimeError, OSError):
        raise SurgeryError(f"{path}: is not a SentencePiece model; get it anew") from None
    return processor


def from_tokenizer_json(files: TokenizerFiles) -> Vocabulary:
    """The pieces, their scores restored from the order of the merges. Raises SurgeryError for another kind of tokenizer.

    SentencePiece merges the pair that makes the piece of the highest score, tokenizers the pair of the lowest rank;
    the merges were listed in the order of their pieces' scores, so minus that order is a score that merges alike.
    """
    if not files.model.get("byte_fallback"):
        raise SurgeryError(
            f"{files.path}: is neither byte-level BPE nor SentencePiece BPE with byte fallback; only these can be converted"
        )
    check_steps(files)
    order: dict[str, int] = {}
    for left, right in merge_pairs(files):
        order.setdefault(left + right, len(order))
    unknown = files.model.get("unk_token")
    vocabulary = {}
    for text, number in model_vocabulary(files).items():
        kind = TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else TokenType.NORMAL
        if text == unknown:
            kind = TokenType.UNKNOWN
        score = 0.0 if kind != TokenType.NORMAL else -float(order.get(text, len(order)))
        vocabulary[number] = Token(text, kind, score)
    if lacking := [byte for byte in range(256) if f"<0x{byte:02X}>" not in files.model["vocab"]]:
        raise SurgeryError(f"{files.path}: has no token for the byte {lacking[0]}; llama.cpp wants one for each")
    return vocabulary


def check_steps(files: TokenizerFiles) -> None:
    """Raise SurgeryError for a step of tokenizer.json that changes text otherwise than SentencePiece BPE does."""
    for part, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        for step in flatten(files.tokenizer.get(part), inner):
            if not any(known.items() <= step.items() for known in STEPS[part]):
                raise SurgeryError(
                    f"{files.path}: {part} {shown(step)} is not one of SentencePiece's, as llama.cpp has them"
                )


def adds_space_prefix(files: TokenizerFiles) -> bool:
    """Whether a SentencePiece tokenizer puts a space before the text. Raises SurgeryError when two files contradict."""
    adds = _adds_space(files)
    if (said := files.settings.get("add_prefix_space")) is not None and said is not adds:
        raise SurgeryError(
            f"{files.folder / 'tokenizer_config.json'}: add_prefix_space is {shown(said)}, but by the tokenizer itself"
            f" {'a' if adds else 'no'} space is put before a text"
        )
    return adds


def _adds_space(files: TokenizerFiles) -> bool:
    if not files.tokenizer:
        return checked_settings(files.folder / "tokenizer.model").adds_space
    normalizers = flatten(files.tokenizer.get("normalizer"), "normalizers")
    splitters = flatten(files.tokenizer.get("pre_tokenizer"))
    return any(step.get("type") == "Prepend" for step in normalizers) or any(
        step.get("type") == "Metaspace" and _prepends(step) for step in splitters
    )


def _prepends(step: dict[str, Any]) -> bool:
    """Whether a Metaspace step puts a space before a text, as older and newer files say it."""
    return bool(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never")
