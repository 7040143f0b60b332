"""`tokenizer.ggml.pre`: llama.cpp's name for the way in which a byte-level tokenizer splits text before it merges.

llama.cpp's converter knows a tokenizer by a hash of the ids that it gives to one text, which changes with every added
token. Here it is known by what tokenizer.json says that it does, so fine-tuned vocabularies are recognised as well.
The patterns are those that llama.cpp implements (src/llama-vocab.cpp, in its comments). It leaves out the Unicode
normalisation (NFC) that Qwen's tokenizers begin with, so there text in decomposed characters gets other ids.
"""

from pathlib import Path
from typing import Any

from pipeline.errors import SurgeryError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2_PATTERN = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = ("bytes", "gpt-2")  # the ByteLevel step splits with GPT-2's own pattern
BYTES = ("bytes", "")

# (the steps, whether a piece that is a token is taken whole, without merging) -> llama.cpp's name
Steps = tuple[tuple[str, str], ...]
KNOWN: dict[tuple[Steps, bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((("digits", ""), GPT2), False): "smollm",
    ((("split", LLAMA3_PATTERN), BYTES), True): "llama-bpe",
    ((("split", LLAMA3_PATTERN), BYTES), False): "smaug-bpe",
    ((("split", QWEN2_PATTERN), BYTES), False): "qwen2",
    ((("split", TEKKEN_PATTERN), BYTES), True): "tekken",
}


def find_pre_tokenizer(path: Path, tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises SurgeryError for one that has none here."""
    steps = tuple(map(_step, flatten(tokenizer.get("pre_tokenizer"))))
    normalizers = {step.get("type") for step in flatten(tokenizer.get("normalizer"), "normalizers")}
    name = KNOWN.get((steps, bool(tokenizer["model"].get("ignore_merges"))))
    if name is None or not normalizers <= {"NFC"}:
        known = ", ".join(sorted(KNOWN.values()))
        raise SurgeryError(
            f"{path}: splits text in a way that is not recognised; if llama.cpp has a name for it, such as {known},"
            " add `pre` NAME"
        )
    return name


def flatten(step: Any, key: str = "pretokenizers") -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or normalizer of tokenizer.json, one after the other."""
    if not isinstance(step, dict):
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for part in step.get(key, []) for inner in flatten(part, key)]


def _step(step: dict[str, Any]) -> tuple[str, str]:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2 if step.get("use_regex", True) else BYTES
        case {"type": "Digits", "individual_digits": True}:
            return ("digits", "")
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return ("split", pattern)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return ("split", pattern)  # what matches is kept, and of a text everything matches
    return ("unknown", str(step.get("type")))
