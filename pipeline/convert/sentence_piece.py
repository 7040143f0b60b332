"""SentencePiece BPE vocabularies, from tokenizer.model or from the tokenizer.json that was made of one."""

import re
from pathlib import Path
from typing import Any

from gguf import TokenType

from pipeline.convert.byte_level import model_vocabulary
from pipeline.convert.vocabulary import SPACE, Token, Vocabulary
from pipeline.errors import SurgeryError
from pipeline.extras import require

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def from_model_file(path: Path) -> Vocabulary:
    """The pieces of a tokenizer.model. Raises SurgeryError when it is damaged, or the package is missing."""
    processor = _load(path)
    kinds = (
        (processor.IsUnknown, TokenType.UNKNOWN),
        (processor.IsControl, TokenType.CONTROL),
        (processor.IsUnused, TokenType.UNUSED),
        (processor.IsByte, TokenType.BYTE),
    )
    vocabulary = {}
    for number in range(processor.vocab_size()):
        kind = next((kind for test, kind in kinds if test(number)), TokenType.NORMAL)
        vocabulary[number] = Token(processor.IdToPiece(number), kind, processor.GetScore(number))
    return vocabulary


def model_adds_space_prefix(path: Path) -> bool:
    """Whether the tokenizer puts a space before the text: a setting that the package does not tell, so it is tried."""
    pieces: list[str] = _load(path).EncodeAsPieces("a")
    return pieces[0].startswith(SPACE)


def _load(path: Path) -> Any:
    package = require("sentencepiece", "hub", f"{path}: a SentencePiece tokenizer")
    processor = package.SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
    except (RuntimeError, OSError):
        raise SurgeryError(f"{path}: is not a SentencePiece model; get it anew") from None
    return processor


def from_tokenizer_json(path: Path, tokenizer: dict[str, Any]) -> Vocabulary:
    """The pieces, their scores restored from the order of the merges. Raises SurgeryError for another kind of tokenizer.

    SentencePiece merges the pair that makes the piece of the highest score, tokenizers the pair of the lowest rank;
    the merges were listed in the order of their pieces' scores, so minus that order is a score that merges alike.
    """
    model = tokenizer.get("model", {})
    if not model.get("byte_fallback"):
        raise SurgeryError(
            f"{path}: is neither byte-level BPE nor SentencePiece BPE with byte fallback; only these can be converted"
        )
    order: dict[str, int] = {}
    for merge in model.get("merges", []):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        order.setdefault(left + right, len(order))
    unknown = model.get("unk_token")
    vocabulary = {}
    for text, number in model_vocabulary(path, tokenizer).items():
        kind = TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else TokenType.NORMAL
        if text == unknown:
            kind = TokenType.UNKNOWN
        score = 0.0 if kind != TokenType.NORMAL else -float(order.get(text, len(order)))
        vocabulary[number] = Token(text, kind, score)
    return vocabulary
