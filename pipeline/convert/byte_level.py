"""Byte-level BPE vocabularies (GPT-2's kind), from tokenizer.json."""

from typing import Any

from pipeline.convert.config import shown
from pipeline.convert.pre_tokenizer import flatten
from pipeline.convert.tokenizer_files import TokenizerFiles
from pipeline.convert.vocabulary import Token, Vocabulary
from pipeline.errors import SurgeryError


def is_byte_level(files: TokenizerFiles) -> bool:
    return any(step.get("type") == "ByteLevel" for step in flatten(files.tokenizer.get("pre_tokenizer")))


def model_vocabulary(files: TokenizerFiles) -> dict[str, int]:
    """`model.vocab` of tokenizer.json: ids by text. Raises SurgeryError when it is not there, ValueError for other ids."""
    entries = files.model.get("vocab")
    if not isinstance(entries, dict) or not entries:
        raise SurgeryError(f"{files.path}: has no vocabulary; get it anew")
    numbers = set()
    for text, number in entries.items():
        if type(number) is not int or number < 0 or number in numbers:
            raise ValueError(f"the token {shown(text)} has the id {shown(number)}, no number of its own")
        numbers.add(number)
    return entries


def byte_level_vocabulary(files: TokenizerFiles) -> Vocabulary:
    """The tokens without the added ones; their bytes are spelled as GPT-2's printable characters, as GGUF wants them.

    Raises SurgeryError where spaces are put in front, or text is changed before it is split.
    """
    if files.settings.get("add_prefix_space"):
        raise SurgeryError(
            f"{files.folder / 'tokenizer_config.json'}: add_prefix_space is true; llama.cpp puts no space before a text"
        )
    for step in flatten(files.tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") != "NFC":  # which llama.cpp leaves out: see pre_tokenizer.py
            raise SurgeryError(f"{files.path}: normalizer {shown(step.get('type'))}; llama.cpp splits text as it is")
    _check_decoder(files)
    return {number: Token(text) for text, number in model_vocabulary(files).items()}


def _check_decoder(files: TokenizerFiles) -> None:
    for step in flatten(files.tokenizer.get("decoder"), "decoders"):
        if step.get("type") != "ByteLevel":
            raise SurgeryError(f"{files.path}: decoder {shown(step.get('type'))}; llama.cpp joins bytes as they are")


def merges(files: TokenizerFiles) -> list[str]:
    """The merges as GGUF has them, two texts with a space between, each without one. Raises SurgeryError for others."""
    return [" ".join(part.replace(" ", chr(ord(" ") + 256)) for part in pair) for pair in merge_pairs(files)]


def merge_pairs(files: TokenizerFiles) -> list[tuple[str, str]]:
    """The merges of tokenizer.json, written as "a b" by older versions and as ["a", "b"] by newer ones."""
    pairs = []
    entries: Any = files.model.get("merges") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or [type(part) for part in parts] != [str, str]:
            raise SurgeryError(f"{files.path}: the merge {shown(entry)} is not of two texts; get the file anew")
        pairs.append((parts[0], parts[1]))
    return pairs
