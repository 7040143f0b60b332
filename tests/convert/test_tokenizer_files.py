"""What a checkpoint's tokenizer files say is what llama.cpp does with them, or they are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer

from native.isolated import isolated
from native.vocabulary import SeenVocabulary
from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.sentence_piece_file import read_settings
from pipeline.convert.verify import look, verified
from pipeline.convert.write import write_model
from pipeline.errors import SurgeryError
from tests.commands import call
from tests.convert.changes import change_config
from tests.convert.checkpoints import llama_cpp_ids
from tests.convert.conftest import MakeFolder
from tests.convert.tokenizers import PHI_3, TRAINING_TEXT, sentence_piece_as_json

Copy = Callable[[str], Path]


@pytest.fixture
def copy(checkpoint: MakeFolder, tmp_path: Path) -> Copy:
    """Gives a checkpoint's folder that may be changed."""
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / "checkpoint"))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value))


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Set `a.b` of an object to `value`."""

    def change(values: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            values = values[parent]
        values[last] = value

    return change


def metadata(folder: Path) -> dict[str, Any]:
    return {key.removeprefix("tokenizer."): e.value for key, e in open_checkpoint(folder).metadata.items()}


# (checkpoint, file, key, value, what the message must say)
REFUSED: list[tuple[str, str, str, Any, str]] = [
    ("qwen2", "tokenizer.json", "post_tokenizer", {"type": "x"}, "post_tokenizer is {'type': 'x'}"),
    ("qwen2", "tokenizer.json", "model.dropout", 0.1, "model.dropout is 0.1"),
    ("qwen2", "tokenizer.json", "model.end_of_word_suffix", "</w>", "model.end_of_word_suffix is '</w>'"),
    ("qwen2", "tokenizer.json", "model.scores", [1], "model.scores is [1]"),
    ("qwen2", "tokenizer.json", "model.merges", ["a b c"], "the merge 'a b c' is not of two texts"),
    ("qwen2", "tokenizer.json", "normalizer", {"type": "Lowercase"}, "normalizer 'Lowercase'"),
    ("qwen2", "tokenizer.json", "decoder", {"type": "WordPiece"}, "decoder 'WordPiece'"),
    ("qwen2", "tokenizer.json", "post_processor", {"type": "BertProcessing"}, "post_processor is of type"),
    ("llama-mha-tied", "tokenizer.json", "normalizer", {"type": "NFKC"}, "normalizer {'type': 'NFKC'}"),
    ("llama-mha-tied", "tokenizer.json", "pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer {'type'"),
    ("llama-mha-tied", "tokenizer.json", "decoder", {"type": "BPEDecoder"}, "decoder {'type'"),
    ("qwen2", "tokenizer_config.json", "add_prefix_space", True, "add_prefix_space is true"),
    ("llama", "tokenizer_config.json", "add_prefix_space", False, "by the tokenizer itself a space"),
    ("llama-mha-tied", "tokenizer_config.json", "add_prefix_space", False, "by the tokenizer itself a space"),
    ("qwen2", "tokenizer_config.json", "do_lower_case", True, "do_lower_case is True"),
    ("qwen2", "tokenizer_config.json", "split_special_tokens", True, "split_special_tokens is True"),
    ("qwen2", "tokenizer_config.json", "auto_map", {"AutoTokenizer": ["x.Y", None]}, "auto_map is"),
    ("qwen2", "tokenizer_config.json", "eos_token", "<|no|>", "eos_token is '<|no|>', which is no token"),
    ("qwen2", "tokenizer_config.json", "bos_token", {"content": "<|no|>"}, "bos_token is '<|no|>', which is no token"),
    ("qwen2", "tokenizer_config.json", "add_bos_token", "yes", "add_bos_token is 'yes'"),
    ("qwen2", "tokenizer_config.json", "add_bos_token", True, "by tokenizer.json's post_processor"),
    ("qwen2", "tokenizer_config.json", "chat_template", [1], "chat_template is [1]"),
    ("qwen2", "tokenizer_config.json", "added_tokens_decoder", {"1": {"content": "<|x|>"}}, "the token 1 is"),
    ("qwen2", "special_tokens_map.json", "something", "<|x|>", "something is '<|x|>'"),
    ("qwen2", "generation_config.json", "suppress_tokens", [5], "suppress_tokens is [5]"),
    ("qwen2", "generation_config.json", "eos_token_id", 512, "eos_token_id is 512; expected the number of one"),
    ("qwen2", "generation_config.json", "eos_token_id", [1, -1], "eos_token_id is -1"),
    ("qwen2", "generation_config.json", "eos_token_id", [0, 1, 2, 400, 401], "spell"),
]


@pytest.mark.parametrize(("name", "file", "key", "value", "message"), REFUSED, ids=[f"{c[1]}:{c[2]}" for c in REFUSED])
def test_what_llama_cpp_does_not_do_is_refused(
    name: str, file: str, key: str, value: Any, message: str, copy: Copy
) -> None:
    folder = copy(name)
    change_json(folder / file, put(key, value))
    if message == "spell":  # those of config.json that spell text are transformers' defaults
        assert [metadata(folder)[f"ggml.{key}_token_id"] for key in ("eos", "eot", "eom")] == [1, 0, 2]
        return
    with pytest.raises(SurgeryError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_every_end_of_a_list_ends_generation(copy: Copy) -> None:
    """Without eos_token in tokenizer_config.json: llama.cpp would end at token 11."""
    folder = copy("llama3")
    (folder / "tokenizer_config.json").unlink()
    change_config(folder, bos_token_id=0, eos_token_id=[1, 2])
    (folder / "generation_config.json").unlink()
    assert (metadata(folder)["ggml.eos_token_id"], metadata(folder)["ggml.eot_token_id"]) == (1, 2)
    verified(open_checkpoint(folder))
    change_json(folder / "generation_config.json", put("eos_token_id", 2))
    assert metadata(folder)["ggml.eos_token_id"] == 2
    (folder / "generation_config.json").unlink()
    change_config(folder, eos_token_id=None)
    with pytest.raises(SurgeryError, match="no file names the token that ends a text"):
        open_checkpoint(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens", "pad_token", "image_token"])
def test_a_token_is_special_if_one_file_says_so(file: str, key: str, copy: Copy) -> None:
    folder = copy("qwen2")
    number = 300
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).id_to_token(number)
    assert metadata(folder)["ggml.token_type"][number] == 1
    change_json(folder / file, put(key, [text] if key.endswith("tokens") else {"content": text}))
    assert metadata(folder)["ggml.token_type"][number] == 3


def test_special_tokens_map_alone_names_the_end(copy: Copy) -> None:
    folder = copy("qwen2")
    change_json(folder / "tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    change_json(folder / "special_tokens_map.json", put("eos_token", "<|special|>"))
    assert metadata(folder)["ggml.eos_token_id"] == 2
    assert transformers.AutoTokenizer.from_pretrained(folder).eos_token == "<|special|>"


def test_texts_of_added_tokens_are_those_of_the_tokenizer(copy: Copy, tmp_path: Path) -> None:
    """DeepSeek's have SentencePiece's space in them, in a byte-level vocabulary."""
    folder = copy("qwen2")
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([AddedToken("<\uff5cfim\u2581hole\uff5c>", normalized=False), AddedToken("a\u2581b")])
    tokenizer.save(str(path))
    write_model(verified(open_checkpoint(folder)), tmp_path / "out.gguf")
    text = "a<\uff5cfim\u2581hole\uff5c>b a\u2581b c"
    assert llama_cpp_ids(tmp_path / "out.gguf", text) == tokenizer.encode(text).ids


@pytest.mark.parametrize("way", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_swallow_what_is_around_them_are_refused(way: str, copy: Copy) -> None:
    folder = copy("qwen2")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|odd|>", **{way: True})])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(SurgeryError, match=rf"the added token '<\|odd\|>' has {way}"):
        open_checkpoint(folder)
    change_json(folder / "tokenizer_config.json", put("pad_token", "<|odd|>"))
    verified(open_checkpoint(folder))


def test_phi_3s_tokens_take_spaces_as_llama_cpp_has_it_by_the_models_name(copy: Copy, tmp_path: Path) -> None:
    folder = copy("phi3")
    with pytest.raises(
        SurgeryError, match=r"has rstrip; llama\.cpp leaves what is around .*, but in a model that is called phi-3"
    ):
        open_checkpoint(folder)
    named = folder.rename(tmp_path / "My-Phi-3")
    tokenizer = sentence_piece_as_json(named)
    for number, entry in PHI_3.items():
        text = entry["content"]
        tokenizer.add_special_tokens([AddedToken(text, rstrip=entry["rstrip"], normalized=False)])
        assert tokenizer.token_to_id(text) == number
    tokenizer.save(str(named / "tokenizer.json"))
    write_model(verified(open_checkpoint(named)), tmp_path / "out.gguf")
    text = "<|user|>  a b<|end|>\n <|endoftext|> a</s> b"
    assert llama_cpp_ids(tmp_path / "out.gguf", text)[1:] == tokenizer.encode(text, add_special_tokens=False).ids
    change_json(named / "tokenizer_config.json", put("added_tokens_decoder.482.rstrip", False))
    with pytest.raises(SurgeryError, match=r"<\|end\|>' has no rstrip; llama\.cpp takes the spaces behind one"):
        open_checkpoint(named)


def test_what_llama_cpp_wants_of_a_model_called_phi_3_is_told(copy: Copy, tmp_path: Path) -> None:
    folder = copy("phi3").rename(tmp_path / "not-phi3")
    change_json(folder / "tokenizer_config.json", lambda settings: settings["added_tokens_decoder"].pop("480"))
    with pytest.raises(SurgeryError, match=r"no token <\|endoftext\|>, which llama\.cpp wants .* call the folder"):
        open_checkpoint(folder)


def test_two_tokens_of_one_text_are_refused(copy: Copy) -> None:
    folder = copy("qwen2")
    change_json(folder / "tokenizer.json", lambda t: t["added_tokens"].append({"id": 490, "content": "x"}))
    with pytest.raises(SurgeryError, match="and 490 are both 'x'"):
        open_checkpoint(folder)


def test_padding_takes_another_name_where_its_own_is_taken(copy: Copy) -> None:
    folder = copy("qwen2")
    change_json(folder / "tokenizer.json", lambda t: t["added_tokens"].append({"id": 490, "content": "[PAD500]"}))
    tokens = metadata(folder)["ggml.tokens"]
    assert (tokens[490], tokens[500], len(set(tokens))) == ("[PAD500]", "[[PAD500]]", 512)


def test_the_template_in_a_file_of_its_own_comes_first(copy: Copy) -> None:
    folder = copy("qwen2")
    (folder / "chat_template.jinja").write_text("NEW")
    assert metadata(folder)["chat_template"] == "NEW"
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("TOOLS")
    found = metadata(folder)
    assert (found["chat_template"], found["chat_template.tool_use"]) == ("NEW", "TOOLS")
    assert found["chat_templates"] == ["tool_use"]
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template == {"default": "NEW", "tool_use": "TOOLS"}


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}],
        {"rag": "R", "default": "D"},
    ],
)
def test_templates_by_name(value: Any, copy: Copy) -> None:
    folder = copy("qwen2")
    change_json(folder / "tokenizer_config.json", put("chat_template", value))
    found = metadata(folder)
    assert (found["chat_template"], found["chat_template.rag"]) == ("D", "R")


def test_bos_and_eos_are_added_as_the_post_processor_does(copy: Copy) -> None:
    """And what puts more than one token before a text is refused."""
    folder = copy("llama3")

    def template(*parts: str) -> dict[str, Any]:
        single = [
            {"Sequence": {"id": "A", "type_id": 0}} if part == "A" else {"SpecialToken": {"id": part, "type_id": 0}}
            for part in parts
        ]
        return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {}}

    for parts, bos, eos in (
        (("A",), False, False),
        (("<|begin|>", "A"), True, False),
        (("A", "<|end|>"), False, True),
        (("<|begin|>", "A", "<|end|>"), True, True),
    ):
        change_json(folder / "tokenizer.json", put("post_processor", template(*parts)))
        found = metadata(folder)
        assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (bos, eos)
    for parts, message in (
        (("<|begin|>", "<|begin|>", "A"), "adds more than one token"),
        (("<|special|>", "A"), "puts '<|special|>' at the start of a text, which is not its bos_token"),
        (("A", "<|special|>"), "puts '<|special|>' at the end of a text, which is not its eos_token"),
    ):
        change_json(folder / "tokenizer.json", put("post_processor", template(*parts)))
        with pytest.raises(SurgeryError) as caught:
            open_checkpoint(folder)
        assert message in str(caught.value)


PLAIN: dict[str, Any] = {
    "model_type": "bpe", "vocab_size": 480, "hard_vocab_limit": False, "byte_fallback": True, "split_digits": True,
    "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
    "minloglevel": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unigram"}, "is of type Unigram, not BPE"),
        ({"byte_fallback": False, "vocab_size": 150}, "has no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes text by the normaliser nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "removes extra spaces"),
        ({"treat_whitespace_as_suffix": True}, "puts spaces behind words"),
        ({"user_defined_symbols": ["<table>"]}, "has user-defined symbols (['<table>'])"),
        ({"user_defined_symbols": ["<table>"], "add_dummy_prefix": False}, ""),
        ({"add_dummy_prefix": False}, ""),
        ({}, ""),
    ],
)
def test_kinds_of_sentencepiece_models(changes: dict[str, Any], message: str, copy: Copy, tmp_path: Path) -> None:
    folder = copy("llama")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TRAINING_TEXT), model_prefix=str(folder / "tokenizer"), **PLAIN | changes
    )
    if message:
        with pytest.raises(SurgeryError) as caught:
            open_checkpoint(folder)
        assert message in str(caught.value)
        return
    write_model(verified(open_checkpoint(folder)), tmp_path / "out.gguf")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in ("def surgery(attention):", "the  quick <table>x <table>", "\ufb01ne \u00fc", " a"):
        assert llama_cpp_ids(tmp_path / "out.gguf", text) == [1, *processor.EncodeAsIds(text)], text


def test_settings_of_a_damaged_sentencepiece_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for content in (b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 40, b"\x12\x03\x18\x80\x80", b"\x0b"):
        path.write_bytes(content)
        with pytest.raises(SurgeryError, match="is not a SentencePiece model"):
            read_settings(path)


def test_a_pre_tokenizer_that_the_user_names_is_held_against_the_tokenizer(copy: Copy, tmp_path: Path) -> None:
    folder = copy("qwen2")
    result = call("convert", folder, tmp_path / "out.gguf", "--pre", "gpt-2")
    assert result.exit_code == 0
    assert "is --pre gpt-2 right?" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert call("convert", folder, tmp_path / "right.gguf", "--pre", "qwen2").stderr == ""


def test_what_llama_cpp_does_not_load_is_said_before_anything_is_written(copy: Copy, tmp_path: Path) -> None:
    result = call("convert", copy("qwen2"), tmp_path / "out.gguf", "--pre", "no-such-name")
    assert result.exit_code == 1
    assert "llama.cpp cannot load what it becomes" in result.stderr
    assert "unknown pre-tokenizer type: 'no-such-name'" in result.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_a_converted_file_is_seen_as_what_was_verified(checkpoint: MakeFolder, converted: MakeFolder) -> None:
    """The file without weights that is looked at, and the one that is written."""
    seen: SeenVocabulary
    seen, expected, by = next(isolated(look, str(converted("qwen2")), str(checkpoint("qwen2")), ["a b <|end|>"]))
    assert (seen.size, seen.bos, seen.eos, seen.ids, by) == (512, 0, 1, expected, "tokenizer.json")
    assert seen.ends == {1}
