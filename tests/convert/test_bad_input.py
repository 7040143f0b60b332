"""What is wrong with a checkpoint is said in one line, and nothing is left behind."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from tests.commands import call
from tests.convert.changes import WEIGHTS, change_config, change_weights
from tests.convert.checkpoints import make_checkpoint
from tests.convert.conftest import MakeFolder


def shrink_vocabulary(folder: Path) -> None:
    change_config(folder, vocab_size=400)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    change_weights(folder, lambda weights: weights.update({name: weights[name][:400].clone() for name in names}))


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (without(WEIGHTS), "has config.json but no weights; expected one of model.safetensors"),
    "no config": (without("config.json"), f"has weights ({WEIGHTS}) but no config.json"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer; expected tokenizer.json or tokenizer.model"),
    "config is no JSON": (write("config.json", b"{oops"), "config.json: is not valid JSON"),
    "config is a list": (write("config.json", b"[1]"), "config.json: expected a JSON object, found list"),
    "tokenizer is no JSON": (write("tokenizer.json", b"\xff\xfe"), "tokenizer.json: is not valid JSON"),
    "another architecture": (
        lambda folder: change_config(folder, architectures=["MixtralForCausalLM"]),
        "architectures says MixtralForCausalLM, which is not supported; supported are LlamaForCausalLM, MistralForCausalLM",
    ),
    "no architecture": (lambda folder: change_config(folder, architectures=None), "architectures says nothing"),
    "quantised": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "gptq"}),
        "the checkpoint is quantised (gptq); use the float checkpoint instead",
    ),
    "another activation": (lambda folder: change_config(folder, hidden_act="relu"), "hidden_act is relu"),
    "RoPE of another kind": (
        lambda folder: change_config(folder, rope_parameters={"rope_type": "longrope"}),
        "RoPE scaling longrope is not supported",
    ),
    "llama3 without its numbers": (
        lambda folder: change_config(folder, rope_parameters={"rope_type": "llama3", "factor": 8}),
        "rope_scaling of type llama3 needs the numbers factor, low_freq_factor",
    ),
    "RoPE is no object": (
        lambda folder: change_config(folder, rope_parameters=[1]),
        "rope_parameters is [1]; expected a JSON object",
    ),
    "a tokenizer of another make": (
        write(
            "tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": "b"}}, "pre_tokenizer": {"type": "ByteLevel"}}'
        ),
        "the tokenizer's files are not as expected",
    ),
    "a size is missing": (lambda folder: change_config(folder, hidden_size=None), "hidden_size is None; expected"),
    "a size is a string": (lambda folder: change_config(folder, num_hidden_layers="2"), "num_hidden_layers is '2'"),
    "heads do not divide": (
        lambda folder: change_config(folder, num_key_value_heads=3),
        "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
    ),
    "fewer layers in config": (
        lambda folder: change_config(folder, num_hidden_layers=1),
        "is not in a model that config.json describes",
    ),
    "more layers in config": (
        lambda folder: change_config(folder, num_hidden_layers=3),
        "the weights lack model.layers.2.input_layernorm.weight",
    ),
    "another width in config": (
        lambda folder: change_config(folder, intermediate_size=128),
        "tensor model.layers.0.mlp.gate_proj.weight has shape (96, 64); by config.json it should be (128, 64)",
    ),
    "vocabulary smaller than the tokenizer's": (
        shrink_vocabulary,
        "vocab_size in config.json is 400",
    ),
    "a tensor of integers": (
        lambda folder: change_weights(folder, lambda w: w.update(extra=torch.zeros(4, dtype=torch.int8))),
        "tensor extra is stored as I8; only F64, F32, F16, BF16 can be converted",
    ),
    "an unknown tensor": (
        lambda folder: change_weights(folder, lambda w: w.update(extra=torch.zeros(4))),
        "tensor extra is not in a model that config.json describes",
    ),
    "weights truncated": (lambda folder: truncate(folder / WEIGHTS, 50_000), "ends beyond the file; it is truncated"),
    "header truncated": (lambda folder: truncate(folder / WEIGHTS, 100), "not a safetensors file, or it is truncated"),
    "weights are something else": (write(WEIGHTS, b"<html>not found</html>"), "not a safetensors file"),
    "header is no JSON": (write(WEIGHTS, b"\2" + bytes(7) + b"{]" + bytes(9)), "the safetensors header is damaged"),
    "values too large for F16": (
        lambda folder: change_weights(folder, lambda w: w["lm_head.weight"].fill_(1e6)),
        "tensor output.weight holds values too large for F16; use --outtype f32 or bf16",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_checkpoints(case: str, checkpoint: MakeFolder, tmp_path: Path) -> None:
    break_it, message = CASES[case]
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("llama3"), folder)
    break_it(folder)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for command in (
        ["convert", folder, outputs / "out.gguf", "--outtype", "f16"],
        ["operate", folder, "-o", outputs / "out.gguf"],
    ):
        if command[0] == "operate" and "F16" in message:
            continue  # nothing is turned into F16 there
        result = call(*command)
        assert result.exit_code == 1, result.output
        assert message in result.output
        assert len(result.stderr.splitlines()) == 1
        assert list(outputs.iterdir()) == []


def test_missing_shard_and_damaged_index(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "qwen2", max_shard_size="80KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    result = call("convert", folder, tmp_path / "out.gguf")
    assert result.exit_code == 1
    assert "shards are missing, the first is model-00002-of-" in result.output
    shard.write_bytes(content)
    index = folder / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    entries["weight_map"]["model.layers.9.mlp.up_proj.weight"] = shard.name
    index.write_text(json.dumps(entries))
    assert (
        "tensor model.layers.9.mlp.up_proj.weight is in none of the shards"
        in call("convert", folder, tmp_path / "out.gguf").output
    )
    entries["weight_map"]["x"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(entries))
    assert "names the shard '../../elsewhere.safetensors'" in call("convert", folder, tmp_path / "out.gguf").output
    index.write_text("{}")
    assert "has no weight_map" in call("convert", folder, tmp_path / "out.gguf").output
    assert not (tmp_path / "out.gguf").exists()


def test_pickled_code_is_not_run(checkpoint: MakeFolder, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "evil",))

    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("qwen2"), folder)
    (folder / WEIGHTS).unlink()
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    result = call("convert", folder, tmp_path / "out.gguf")
    assert result.exit_code == 1
    assert "torch cannot read it as plain weights" in result.output
    assert not (tmp_path / "evil").exists()


def test_folders_that_are_no_checkpoints(tmp_path: Path, embedded: Path) -> None:
    for command in (["convert", tmp_path, "out.gguf"], ["operate", tmp_path, "-o", "out.gguf"]):
        result = call(*command)
        assert result.exit_code == 2
        assert "is a folder without a checkpoint in it; expected config.json" in result.output
    result = call("operate", embedded.parent, "-o", "out.gguf")
    assert result.exit_code == 2
    assert f"is a folder of GGUF files; name one of them, such as {embedded}" in result.output
    assert "expected a Hugging Face checkpoint" in call("convert", embedded, "out.gguf").output
    assert "no such file" in call("operate", "models/not-there.gguf", "-o", "out.gguf").output


def test_safetensors_in_bf16_need_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "qwen2", torch.bfloat16)
    expected = load_file(folder / WEIGHTS)["model.embed_tokens.weight"].float().numpy()
    for package in ("torch", "transformers", "sentencepiece", "safetensors", "tokenizers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    model = open_checkpoint(folder, outtype="f32")
    write_model(model, tmp_path / "out.gguf")
    np.testing.assert_array_equal(model.read("token_embd.weight"), expected)


@pytest.mark.parametrize(("package", "extra"), [("sentencepiece", "hub"), ("huggingface_hub", "hub"), ("torch", "hf")])
def test_a_missing_extra_is_named_with_its_command(
    package: str, extra: str, checkpoint: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tmp_path / "checkpoint")
    shutil.copytree(checkpoint("llama"), source)
    if package == "huggingface_hub":
        source = "some-org/some-model"
    if package == "torch":
        (tmp_path / "checkpoint" / WEIGHTS).rename(tmp_path / "checkpoint" / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, package, None)
    result = call("convert", source, tmp_path / "out.gguf")
    assert result.exit_code == 1
    assert f"needs the package {package}; in Surgery's folder run: make install-{extra}" in result.output
    assert len(result.stderr.splitlines()) == 1
