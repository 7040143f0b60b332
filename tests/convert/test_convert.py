"""Converting, and operating on the way: what is in the file that comes out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from pipeline.gguf_file.reader import open_gguf
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.commands import call
from tests.convert.checkpoints import make_checkpoint
from tests.convert.conftest import MakeFolder
from tests.convert.written import tensors_of


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen3", "phi4"])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(threshold=0.3),
        Plan(threshold=None, rank=5, method="separate", mean="none", outtype="f16"),
        Plan(threshold=1.0),
    ],
    ids=["shared-kv", "separate", "identity"],
)
def test_surgery_on_the_checkpoint_is_surgery_on_its_gguf(
    name: str, plan: Plan, checkpoint: MakeFolder, converted: MakeFolder, tmp_path: Path
) -> None:
    source = open_checkpoint(checkpoint(name))
    operate(source, tmp_path / "direct.gguf", plan)
    operate(open_gguf(converted(name)), tmp_path / "twice.gguf", plan)
    assert tensors_of(tmp_path / "direct.gguf") == tensors_of(tmp_path / "twice.gguf")
    direct = open_gguf(tmp_path / "direct.gguf")
    if plan.threshold != 1.0:
        assert direct.get("surgery.source.name") == name
        assert direct.get("surgery.method") == plan.method
        queries = "blk.0.attn_qkv.weight" if name == "phi4" else "blk.0.attn_q.weight"
        assert tensors_of(tmp_path / "direct.gguf")[queries] != tensors_of(converted(name))[queries]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_progress_counts_bytes_of_tensors(checkpoint: MakeFolder, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    model = open_checkpoint(checkpoint("llama3"))
    write_model(model, tmp_path / "out.gguf", progress=lambda done, total, note: seen.append((done, total)))
    size = sum(info.nbytes for info in model.tensors.values())
    assert len(seen) >= len(model.tensors)
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_sharded_single_and_bin_checkpoints_convert_to_the_same_file(tmp_path: Path) -> None:
    single = make_checkpoint(tmp_path / "single", "llama", torch.bfloat16)
    sharded = make_checkpoint(tmp_path / "sharded", "llama", torch.bfloat16, max_shard_size="80KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    in_bin = make_checkpoint(tmp_path / "bin", "llama", torch.bfloat16)
    torch.save(load_file(in_bin / "model.safetensors"), in_bin / "pytorch_model.bin")
    (in_bin / "model.safetensors").unlink()
    outputs = []
    for folder in (single, sharded, in_bin):
        output = tmp_path / f"{folder.name}.gguf"
        assert call("convert", folder, output).exit_code == 0
        outputs.append(tensors_of(output))
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("outtype", ["auto", "f32", "f16", "bf16"])
def test_types(stored: torch.dtype, outtype: str, tmp_path: Path) -> None:
    """Matrices are rounded as torch rounds; norms and biases become float32."""
    folder = make_checkpoint(tmp_path / "checkpoint", "qwen2", stored)
    result = call("convert", folder, tmp_path / "out.gguf", "--outtype", outtype, "--json")
    assert result.exit_code == 0, result.output
    own = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    expected_type = own[stored] if outtype == "auto" else outtype
    assert json.loads(result.stdout)["types"] == [expected_type.upper()]
    model = open_gguf(tmp_path / "out.gguf")
    assert model.get("general.file_type") == {"f32": 0, "f16": 1, "bf16": 32}[expected_type]
    weights = load_file(folder / "model.safetensors")
    rounded = weights["model.layers.1.mlp.up_proj.weight"].to(
        next(dtype for dtype, name in own.items() if name == expected_type)
    )
    np.testing.assert_array_equal(model.read("blk.1.ffn_up.weight"), rounded.float().numpy())
    bias = model.tensors["blk.1.attn_v.bias"]
    assert bias.type.name == "F32"
    np.testing.assert_array_equal(
        model.read(bias.name), weights["model.layers.1.self_attn.v_proj.bias"].float().numpy()
    )


def test_the_command_says_what_it_did(checkpoint: MakeFolder, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    result = call("convert", checkpoint("qwen3"), output)
    assert result.exit_code == 0
    assert result.stdout.startswith("qwen3, ")
    assert f"wrote {output}" in result.stdout
    again = call("convert", checkpoint("qwen3"), output)
    assert again.exit_code == 2
    assert "exists already; add --force" in again.output
    assert call("convert", checkpoint("qwen3"), output, "--force").exit_code == 0


def test_operate_takes_a_folder_and_quantises_on_the_way(checkpoint: MakeFolder, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    result = call("operate", checkpoint("llama"), "-o", output, "--threshold", "0.5", "--quant", "Q8_0", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["threshold"] == 0.5
    assert open_gguf(output).tensors["blk.0.ffn_up.weight"].type.name == "Q8_0"
    assert open_gguf(output).get("surgery.threshold") == 0.5
    text = call("operate", checkpoint("llama"), "-o", output, "--threshold", "0.5", "--force")
    assert f"surgery convert {checkpoint('llama')} llama.gguf" in text.stdout


@pytest.mark.parametrize("command", [["eval"], ["run", "--prompt", "x"], ["inspect"], ["quantize", "out.gguf", "Q8_0"]])
def test_other_commands_say_how_to_convert_first(command: list[str], checkpoint: MakeFolder) -> None:
    folder = checkpoint("llama")
    for model, name in ((str(folder), "llama.gguf"), ("no-such-org/some-model@main", "some-model.gguf")):
        result = call(command[0], model, *command[1:])
        assert result.exit_code == 2
        assert f"convert it first: surgery convert {model} {name}" in result.output
