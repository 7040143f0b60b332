"""Converted tokenizers give the ids that transformers gives."""

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, models

from pipeline.convert.pre_tokenizer import find_pre_tokenizer
from pipeline.convert.sentence_piece import from_model_file, from_tokenizer_json
from pipeline.convert.tokenizer import tokenizer_metadata
from pipeline.convert.tokenizer_files import read_tokenizer_files
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.inputs.models import embedded_model
from tests.commands import call
from tests.convert.checkpoints import llama_cpp_ids
from tests.convert.conftest import MakeFolder
from tests.convert.tokenizers import NASTY_TEXT, byte_level_tokenizer, save_sentence_piece, sentence_piece_as_json

# One checkpoint of CHECKPOINTS for each kind of tokenizer.
KINDS = {
    "sentencepiece": "llama",
    "sentencepiece-json": "llama-mha-tied",
    "gpt-2": "llama-biases",
    "smollm": "llama-head-dim",
    "llama-bpe": "llama3",
    "qwen2": "qwen2",
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_transformers(kind: str, checkpoint: MakeFolder, converted: MakeFolder) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(KINDS[kind]))
    # llama.cpp has no Unicode normalisation, which Qwen's tokenizers begin with
    text = unicodedata.normalize("NFC", NASTY_TEXT) if kind == "qwen2" else NASTY_TEXT
    for part in (text, "", " ", "a", "\n\n", *text.splitlines(keepends=True)):
        if kind.startswith("sentencepiece") and part.startswith(" "):
            continue  # transformers 5 does not add the space that SentencePiece adds; see the next test
        assert llama_cpp_ids(converted(KINDS[kind]), part) == tokenizer.encode(part), repr(part)
    if kind not in ("sentencepiece", "sentencepiece-json"):
        assert open_gguf(converted(KINDS[kind])).get("tokenizer.ggml.pre") == kind


def test_ids_equal_those_of_sentencepiece(converted: MakeFolder, tmp_path: Path) -> None:
    """Spaces in front, too: SentencePiece puts one before them, transformers 5 does not."""
    save_sentence_piece(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    text = NASTY_TEXT.replace("</s>", "")
    for part in (text, " ", "   a", " \n", *text.split(" "), *text.splitlines(keepends=True)):
        for name in ("llama", "llama-mha-tied"):
            assert llama_cpp_ids(converted(name), part) == [1, *processor.EncodeAsIds(part)], repr(part)


def test_special_tokens_and_template_come_along(checkpoint: MakeFolder, converted: MakeFolder) -> None:
    for name in KINDS.values():
        model = open_gguf(converted(name))
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(name))
        assert model.get("tokenizer.ggml.bos_token_id") == tokenizer.bos_token_id
        assert model.get("tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
        assert model.get("tokenizer.ggml.add_bos_token") == (tokenizer.encode("a")[0] == tokenizer.bos_token_id)
        assert model.get("tokenizer.chat_template") == "{{ messages }}"
        tokens, types = model.get("tokenizer.ggml.tokens"), model.get("tokenizer.ggml.token_type")
        assert len(tokens) == len(types) == 512
        assert tokens[-1] == "[PAD511]"
        assert types[-1] == 5, "unused"
        assert types[tokenizer.bos_token_id] == 3, "control"


def test_the_real_smollm2_vocabulary(real_tokenizer: Path, tmp_path: Path) -> None:
    vocabulary_only = tmp_path / "vocabulary.gguf"
    embedded = open_gguf(embedded_model())
    kept = [entry for key, entry in embedded.metadata.items() if not key.startswith("tokenizer.")]
    metadata = [*kept, *tokenizer_metadata(real_tokenizer, 49152, None)]
    infos = embedded.tensors.values()
    declarations = [TensorDeclaration(info.name, info.shape, info.type) for info in infos]
    with create_gguf(vocabulary_only, metadata, declarations, alignment=32, force=False) as writer:
        for info in infos:
            writer.copy(info)
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_tokenizer)
    for part in (
        NASTY_TEXT,
        "<|im_start|>user\nHi  there<|im_end|>\n",
        "  1234,5 +x\r\n\r\n\tif",
        *NASTY_TEXT.split(" "),
    ):
        assert llama_cpp_ids(vocabulary_only, part) == tokenizer.encode(part), repr(part)


def test_scores_are_restored_from_the_merges(tmp_path: Path) -> None:
    """Pieces come in the same order by score from tokenizer.json as from the tokenizer.model that it was made of."""
    save_sentence_piece(tmp_path)
    path = tmp_path / "tokenizer.json"
    sentence_piece_as_json(tmp_path).save(str(path))
    original = from_model_file(tmp_path / "tokenizer.model")
    restored = from_tokenizer_json(read_tokenizer_files(tmp_path, {}))
    merged = [number for number, token in original.items() if token.type == 1 and len(token.text) > 1]
    assert len(merged) > 50
    assert [restored[number].text for number in merged] == [original[number].text for number in merged]
    assert sorted(merged, key=lambda n: -restored[n].score) == sorted(merged, key=lambda n: -original[n].score)


def test_an_added_token_does_not_hide_the_pre_tokenizer() -> None:
    tokenizer = byte_level_tokenizer("qwen2")
    tokenizer.add_special_tokens(["<|mine|>"])
    assert find_pre_tokenizer(Path("tokenizer.json"), json.loads(tokenizer.to_str())) == "qwen2"


def test_added_tokens_without_an_embedding_are_left_out(checkpoint: MakeFolder, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    shutil.copytree(checkpoint("qwen2"), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|pad|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert tokenizer.token_to_id("<|pad|>") == 480
    for vocab_size, there in ((481, True), (480, False)):
        metadata = {entry.key: entry.value for entry in tokenizer_metadata(folder, vocab_size, None)}
        assert len(metadata["tokenizer.ggml.tokens"]) == vocab_size
        assert ("<|pad|>" in metadata["tokenizer.ggml.tokens"]) is there


def test_an_unknown_pre_tokenizer_needs_its_name(checkpoint: MakeFolder, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(checkpoint("qwen2"), folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[aeiou]+"
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(SurgeryError, match=r"not recognised.*`pre` NAME"):
        list(tokenizer_metadata(folder, 512, None))
    for command in (["convert", folder, "out.gguf"], ["operate", folder, "-o", "out.gguf", "--force"]):
        assert call(*command).exit_code == 1
        assert call(*command, "--pre", "qwen2").exit_code == 0
        assert open_gguf(Path("out.gguf")).get("tokenizer.ggml.pre") == "qwen2"


def test_other_kinds_of_tokenizers_are_refused(checkpoint: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="has no tokenizer"):
        list(tokenizer_metadata(tmp_path, 512, None))
    Tokenizer(models.Unigram([("a", 0.0)])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SurgeryError, match="type Unigram is not supported"):
        list(tokenizer_metadata(tmp_path, 512, None))
    with pytest.raises(SurgeryError, match="has 480 tokens, but vocab_size"):
        list(tokenizer_metadata(checkpoint("qwen2"), 100, "qwen2"))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(SurgeryError, match="is not a SentencePiece model"):
        list(tokenizer_metadata(tmp_path, 512, None))
