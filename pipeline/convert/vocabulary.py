"""A vocabulary on its way from a checkpoint to GGUF: text, score and type of each token, by id."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from pipeline.convert.config import read_json_if_there
from pipeline.errors import SurgeryError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes spaces so
ADDED_SCORE = -1000.0  # never the result of a merge
PADDING_SCORE = -10000.0


@dataclass(frozen=True)
class Token:
    text: str
    type: TokenType = TokenType.NORMAL
    score: float = 0.0


Vocabulary = dict[int, Token]


def add_added_tokens(
    vocabulary: Vocabulary, folder: Path, tokenizer: dict[str, Any], settings: dict[str, Any], vocab_size: int
) -> None:
    """Put the added tokens in, special ones as control tokens; they replace what stands under their id.

    Those beyond `vocab_size` are left out: some fine-tuned models' tokenizers have a padding token without embedding.
    """
    for number, text, special in _added_tokens(folder, tokenizer, settings):
        if number < vocab_size:
            control = special or looks_special(text)
            kind = TokenType.CONTROL if control else TokenType.USER_DEFINED
            vocabulary[number] = Token(text if control else text.replace(SPACE, " "), kind, ADDED_SCORE)


def _added_tokens(folder: Path, tokenizer: dict[str, Any], settings: dict[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """(id, text, whether special), from the files that may hold them, the most telling one last."""
    for text, number in read_json_if_there(folder / "added_tokens.json").items():
        yield int(number), text, False
    decoder = settings.get("added_tokens_decoder") or {}
    for number, entry in decoder.items():
        yield int(number), entry["content"], bool(entry.get("special"))
    for entry in tokenizer.get("added_tokens") or []:
        yield int(entry["id"]), entry["content"], bool(entry.get("special"))


def looks_special(text: str) -> bool:
    """Whether an added token is a control token although its checkpoint does not say so, as llama.cpp takes it."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def pad(vocabulary: Vocabulary, vocab_size: int, folder: Path) -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types by id, ids without a token filled. Raises SurgeryError when ids go beyond vocab_size."""
    if (largest := max(vocabulary, default=-1)) >= vocab_size:
        raise SurgeryError(
            f"{folder}: the tokenizer has {largest + 1} tokens, but vocab_size in config.json is {vocab_size}"
        )
    tokens = [
        vocabulary.get(number) or Token(f"[PAD{number}]", TokenType.UNUSED, PADDING_SCORE)
        for number in range(vocab_size)
    ]
    return [token.text for token in tokens], [token.score for token in tokens], [int(token.type) for token in tokens]
