"""A converted model held against where it is from, before it is written: shapes, special tokens, the ids of texts.

llama.cpp loads a file that has the header of the one to come, and no weights: a hole of their size. It does so in a
process of its own, and beside it the checkpoint's tokenizer is run by the package that it was made with, if that is
installed.
"""

import importlib.util
import tempfile
import unicodedata
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from gguf import Keys, TokenType

from native.errors import NativeError
from native.isolated import isolated
from native.vocabulary import SeenVocabulary, see_vocabulary
from pipeline.convert.checkpoint import Checkpoint
from pipeline.convert.config import read_json_if_there, shown
from pipeline.convert.pre_tokenizer import flatten
from pipeline.convert.sentence_piece import load_processor
from pipeline.errors import SurgeryError
from pipeline.gguf_file.writer import TensorDeclaration, layout

# Letters, numbers, contractions, indentation, line ends, several scripts, symbols beyond 16 bits.
TEXT = (
    "Hello, world! It's 2024: I'll say 12345678 times 3.14, DON'T we'Ve?\n\n\tdef f(x):\n        return x**2  # squares\r\n"
    "Größe, où l'été; Привет мир! 我想吃苹果。カタカナ 한국어 🦙🚀 a   b\n \n  \n~~~~ ...!!! end  "
)
MOST_SPECIAL = 64  # texts with a special token in them
SILENT = (Keys.Tokenizer.PAD_ID, Keys.Tokenizer.MASK_ID, Keys.Tokenizer.UNK_ID)  # no prompt contains these
Ids = list[list[int]]
Looked = tuple[SeenVocabulary, Ids, str]  # what llama.cpp sees, the ids that the tokenizer gives, what that is


def verified(model: Checkpoint, pre: str | None = None) -> Checkpoint:
    """`model`, when llama.cpp loads what it becomes and its vocabulary gives the ids of the checkpoint's tokenizer.

    Where `pre`, the user's word for the pre-tokenizer, leads to other ids, that is a note of the model instead of an
    error. Raises SurgeryError.
    """
    texts = [*TEXT.splitlines(keepends=True), TEXT, *_special_texts(model)]
    if any(step.get("type") == "NFC" for step in flatten(_tokenizer(model).get("normalizer"), "normalizers")):
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    seen, expected, by = _look(model, texts)
    for what, found, wanted in (
        ("tokens", seen.size, len(model.get(Keys.Tokenizer.LIST, []))),
        ("BOS", seen.bos, model.get(Keys.Tokenizer.BOS_ID, seen.bos)),
        ("EOS", seen.eos, model.get(Keys.Tokenizer.EOS_ID)),
    ):
        if found != wanted:
            raise SurgeryError(f"{model.folder}: llama.cpp takes {found} for {what}, the checkpoint says {wanted}")
    for text, ours, theirs in zip(texts, seen.ids, expected, strict=False):
        if ours == theirs:
            continue
        first = next(i for i, (a, b) in enumerate(zip([*ours, -1], [*theirs, -1], strict=False)) if a != b)
        what = (
            f"{model.folder}: of the text {shown(text)} llama.cpp's token {first + 1} is {_named(model, ours, first)},"
            f" {by}'s {_named(model, theirs, first)}"
        )
        if pre is None:
            raise SurgeryError(f"{what}; llama.cpp cannot express this tokenizer")
        return replace(model, notes=(*model.notes, f"{what}; is `pre` {pre} right?"))
    return model


def _named(model: Checkpoint, ids: list[int], place: int) -> str:
    tokens = model.get(Keys.Tokenizer.LIST, [])
    return f"{ids[place]} ({shown(tokens[ids[place]])})" if place < len(ids) and ids[place] < len(tokens) else "none"


def _tokenizer(model: Checkpoint) -> dict[str, object]:
    return read_json_if_there(model.folder / "tokenizer.json")


def _special_texts(model: Checkpoint) -> list[str]:
    """Texts with special tokens in them; none where tokenizers, unlike llama.cpp, puts no space after them."""
    splitters = flatten(_tokenizer(model).get("pre_tokenizer"))
    if any(step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first" for step in splitters):
        return []
    tokens, types = model.get(Keys.Tokenizer.LIST, []), model.get(Keys.Tokenizer.TOKEN_TYPE, [])
    silent = {model.get(key) for key in SILENT}
    kept = {model.get(Keys.Tokenizer.BOS_ID), model.get(Keys.Tokenizer.EOS_ID)}
    special = [
        text
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and (number in kept or number not in silent)
    ]
    half = MOST_SPECIAL // 2
    chosen = special if len(special) <= MOST_SPECIAL else special[:half] + special[-half:]
    return [f"a{text}b {text} c" for text in chosen]


def _look(model: Checkpoint, texts: list[str]) -> Looked:
    declarations = [TensorDeclaration(t.name, t.shape, t.type) for t in model.tensors.values()]
    header, _, size = layout(list(model.metadata.values()), declarations, model.alignment)
    try:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(header)
            file.truncate(size)
            file.flush()
            looked = next(isolated(look, file.name, str(model.folder), texts))
    except OSError as error:
        raise SurgeryError(f"{tempfile.gettempdir()}: a temporary file cannot be written: {error.strerror}") from None
    except NativeError as error:
        raise SurgeryError(f"{model.folder}: llama.cpp cannot load what it becomes: {error}") from None
    if isinstance(looked, SurgeryError):
        raise looked
    return looked


def look(path: str, folder: str, texts: list[str]) -> Generator[Looked | SurgeryError, None, None]:
    """What llama.cpp sees of the file at `path`, the ids that the tokenizer in `folder` gives, and what that is called.

    The ids may be of the first texts only, or of none. To be run in a process of its own.
    """
    try:
        yield (see_vocabulary(path, texts), *reference_ids(Path(folder), texts))
    except SurgeryError as error:  # what is raised there is a fault of the process itself
        yield error


def reference_ids(folder: Path, texts: Sequence[str]) -> tuple[Ids, str]:
    """The ids by tokenizers or sentencepiece, without BOS and EOS, as far as the packages are installed."""
    path = folder / "tokenizer.json"
    if path.is_file() and importlib.util.find_spec("tokenizers"):
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
        except Exception as error:  # the package raises no other kind
            raise SurgeryError(f"{path}: the package tokenizers cannot read it: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts], path.name
    path = folder / "tokenizer.model"
    if path.is_file() and importlib.util.find_spec("sentencepiece"):
        plain = texts[: len(TEXT.splitlines()) + 1]
        return [load_processor(path).EncodeAsIds(text) for text in plain], path.name
    return [], path.name
