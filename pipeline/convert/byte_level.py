"""Byte-level BPE vocabularies (GPT-2's kind), from tokenizer.json."""

from pathlib import Path
from typing import Any

from pipeline.convert.vocabulary import Token, Vocabulary
from pipeline.errors import SurgeryError


def model_vocabulary(path: Path, tokenizer: dict[str, Any]) -> dict[str, int]:
    """`model.vocab` of a tokenizer.json: ids by text. Raises SurgeryError when it is not there."""
    entries = tokenizer.get("model", {}).get("vocab")
    if not isinstance(entries, dict) or not entries:
        raise SurgeryError(f"{path}: has no vocabulary; get it anew")
    return entries


def byte_level_vocabulary(path: Path, tokenizer: dict[str, Any]) -> Vocabulary:
    """The tokens without the added ones; their bytes are spelled as GPT-2's printable characters, as GGUF wants them."""
    return {number: Token(text) for text, number in model_vocabulary(path, tokenizer).items()}
