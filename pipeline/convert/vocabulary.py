"""A vocabulary on its way from a checkpoint to GGUF: text, score and type of each token, by id."""

from dataclasses import dataclass

from gguf import TokenType

from pipeline.convert.config import shown
from pipeline.convert.tokenizer_files import TokenizerFiles
from pipeline.errors import SurgeryError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes spaces so
# What llama.cpp has for Phi-3, and knows it by: in a model with such a name special tokens take the spaces behind them,
# but for some, and all of these have to be there.
PHI_3_NAMES = ("phi-3", "phi3")
PHI_3_TAKES_NONE = ("<unk>", "<s>", "<|endoftext|>")
PHI_3_TOKENS = ("</s>", *PHI_3_TAKES_NONE)
CALL_IT = "call the folder something else"
ADDED_SCORE = -1000.0  # never the result of a merge
PADDING_SCORE = -10000.0


@dataclass(frozen=True)
class Token:
    text: str
    type: TokenType = TokenType.NORMAL
    score: float = 0.0


Vocabulary = dict[int, Token]


def is_called_phi_3(name: str) -> bool:
    """Whether llama.cpp takes a model of that `general.name` for Phi-3."""
    return any(part in name.lower() for part in PHI_3_NAMES)


def add_added_tokens(
    vocabulary: Vocabulary, files: TokenizerFiles, vocab_size: int, *, byte_level: bool, name: str = ""
) -> None:
    """Put the added tokens in, special ones as control tokens; they replace what stands under their id.

    Those beyond `vocab_size` are left out: some fine-tuned models' tokenizers have a padding token without embedding.
    A SentencePiece vocabulary writes spaces in its own way; byte-level ones have that character, too, as itself. Raises
    SurgeryError for one that takes spaces around it otherwise than llama.cpp's of a model of that `name`.
    """
    phi_3 = is_called_phi_3(name)
    silent = {files.role(role) for role in ("unk", "sep", "pad", "mask", "cls")}  # no prompt contains these
    special: dict[int, bool] = {}
    texts: dict[int, str] = {}
    for token in files.added_tokens():
        if token.number >= vocab_size:
            continue
        if texts.setdefault(token.number, token.text) != token.text:
            raise SurgeryError(
                f"{files.folder}: the token {token.number} is {shown(texts[token.number])} in one file and"
                f" {shown(token.text)} in another"
            )
        taken = "rstrip" if phi_3 and token.text not in PHI_3_TAKES_NONE else ""
        if token.strips not in (taken, None) and token.text not in silent:
            raise SurgeryError(
                f"{files.folder}: the added token {shown(token.text)} has {token.strips or 'no rstrip'}; llama.cpp"
                + (" takes the spaces behind one" if taken else " leaves what is around a token as it is")
                + (f" in a model that is called phi-3; {CALL_IT}" if phi_3 else ", but in a model that is called phi-3")
            )
        special[token.number] = special.get(token.number, False) or token.special or looks_special(token.text)
        text = token.text if special[token.number] or byte_level else token.text.replace(SPACE, " ")
        kind = TokenType.CONTROL if special[token.number] else TokenType.USER_DEFINED
        vocabulary[token.number] = Token(text, kind, ADDED_SCORE)
    if lacking := [
        text for text in PHI_3_TOKENS if phi_3 and text not in {token.text for token in vocabulary.values()}
    ]:
        raise SurgeryError(
            f"{files.folder}: has no token {lacking[0]}, which llama.cpp wants in a model that is called phi-3; {CALL_IT}"
        )
    named = files.special_texts()
    for number, entry in vocabulary.items():
        if entry.type == TokenType.NORMAL and entry.text in named:
            vocabulary[number] = Token(entry.text, TokenType.CONTROL, entry.score)


def looks_special(text: str) -> bool:
    """Whether an added token is a control token although its checkpoint does not say so, as llama.cpp takes it."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\N{FULLWIDTH VERTICAL LINE}") and text.endswith("\N{FULLWIDTH VERTICAL LINE}>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def pad(vocabulary: Vocabulary, vocab_size: int, files: TokenizerFiles) -> list[Token]:
    """The tokens by id, ids without a token filled.

    Raises SurgeryError when ids go beyond vocab_size, or two tokens have one text, which llama.cpp does not take.
    """
    if (largest := max(vocabulary, default=-1)) >= vocab_size:
        raise SurgeryError(
            f"{files.folder}: the tokenizer has {largest + 1} tokens, but vocab_size in config.json is {vocab_size}"
        )
    numbers: dict[str, int] = {}
    for number, token in vocabulary.items():
        if type(number) is not int or number < 0:
            raise SurgeryError(f"{files.path}: the token {shown(token.text)} has the id {shown(number)}")
        if numbers.setdefault(token.text, number) != number:
            raise SurgeryError(
                f"{files.folder}: the tokens {numbers[token.text]} and {number} are both {shown(token.text)}; llama.cpp"
                " wants one of each"
            )
    return [vocabulary.get(number) or _unused(number, numbers) for number in range(vocab_size)]


def _unused(number: int, numbers: dict[str, int]) -> Token:
    text = f"[PAD{number}]"
    while text in numbers:
        text = f"[{text}]"
    return Token(text, TokenType.UNUSED, PADDING_SCORE)
