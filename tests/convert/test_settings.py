"""What config.json and the weights say is written, or known to change nothing, or refused by name."""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import open_gguf
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.commands import call
from tests.convert.changes import WEIGHTS, change_config, change_weights
from tests.convert.checkpoints import llama_cpp_logits, reference_logits, reference_model
from tests.convert.conftest import MakeFolder

IDS = np.random.default_rng(1).integers(3, 480, 48).tolist()


@pytest.fixture
def copy(checkpoint: MakeFolder, tmp_path: Path) -> Callable[[str], Path]:
    """Gives a checkpoint's folder that may be changed."""
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / "checkpoint"))


# (checkpoint, what config.json says, what the message must name)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama3", {"residual_multiplier": 0.2}, "residual_multiplier is 0.2, a setting that is not known"),
    ("llama3", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama3", {"model_type": "mistral"}, "but model_type 'mistral'"),
    ("llama3", {"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "auto_map is"),
    ("llama3", {"architectures": [["LlamaForCausalLM"]]}, "which is not supported"),
    ("llama3", {"architectures": {"a": 1}}, "which is not supported"),
    ("llama3", {"rms_norm_eps": 1e300}, "rms_norm_eps is 1e+300; expected a positive number"),
    ("llama3", {"rms_norm_eps": 1e-300}, "rms_norm_eps is 1e-300"),
    ("llama3", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ("llama3", {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    ("llama3", {"max_position_embeddings": 2**32}, "max_position_embeddings is 4294967296"),
    ("llama3", {"num_hidden_layers": [2]}, "num_hidden_layers is [2]"),
    ("llama3", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or false"),
    ("llama3", {"attention_bias": True}, "lack model.layers.0.self_attn.q_proj.bias"),
    ("llama3", {"head_dim": 15}, "head_dim is 15; RoPE needs an even one"),
    ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": [1, 2]}}, "rope_theta is [1, 2]"),
    ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, "rope_theta is '1e4'"),
    ("llama3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "with full_attention"),
    ("llama3", {"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type"),
    ("llama3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "say different things"),
    ("llama3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}}, "with alpha 1000.0"),
    ("llama3", {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}, "with mrope_section"),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8}}, "beta_fast 8"),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate False"),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": -1}}, "factor is -1"),
    ("llama3", {"layer_types": ["linear_attention", "full_attention"]}, "layer_types is"),
    ("qwen2", {"attention_bias": True}, "attention_bias is True"),
    ("qwen2", {"head_dim": 32}, "head_dim is 32; llama.cpp computes qwen2 with"),
    ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("gemma3", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32; llama.cpp computes gemma3 of 7 layers"),
    ("gemma3", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar is None"),
    ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "expected those of full_attention"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "RoPE of sliding_attention"),
    ("gemma3", {"layer_types": ["full_attention"]}, "for each of 7 layers"),
    ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation is gelu"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers is [1, 1, 1, 1, 1]"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}, "no_rope_layer_interval 3"),
    ("smollm3", {"no_rope_layers": "x"}, "no_rope_layers is 'x'"),
    ("ernie", {"use_bias": True}, "use_bias is True"),
    ("granite", {"logits_scaling": 0}, "logits_scaling is 0"),
    ("llama3", {"logits_scaling": 8.0}, "logits_scaling is 8.0"),
    (
        "phi4",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 6}},
        "scaling longrope is not supported",
    ),
    (
        "phi4",
        {"rope_parameters": {"type": "su"}},
        "RoPE scaling su is not supported for phi3; supported are default; llama",
    ),
    ("phi4", {"rope_parameters": {"partial_rotary_factor": 0.33}}, "is 0.33, 5 of a head's 16 dimensions"),
    ("phi4", {"rope_parameters": None, "partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5, 24 of"),
    ("phi4", {"head_dim": 32}, "head_dim is 32; llama.cpp computes phi3 with"),
    ("phi4", {"auto_map": {"AutoConfig": "configuration_mine.Phi3Config"}}, "auto_map is"),
    ("ministral3", {"rope_parameters": None}, "RoPE scaling default is not supported for mistral3; supported are yarn"),
    ("ministral3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "llama_4_scaling_beta is None"),
    ("ministral3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate False"),
    (
        "ministral3-pictures",
        {"text_config": {"model_type": "mistral4"}},
        "model_type is 'mistral4'; supported for Mistral3",
    ),
    ("ministral3-pictures", {"vision_tower_is": 1}, "vision_tower_is is a setting that is not known"),
    ("gemma", {"tie_word_embeddings": False}, "the weights lack lm_head.weight"),
    ("gemma2", {"sliding_window": None}, "sliding_window is None"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=[str(case[1])[:60] for case in REFUSED])
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    name: str, changes: dict[str, Any], message: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    change_config(folder, **changes)
    with pytest.raises(SurgeryError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_without_effect_change_nothing(copy: Callable[[str], Path]) -> None:
    folder = copy("llama3")
    before = [entry.raw for entry in open_checkpoint(folder).metadata.values()]
    change_config(
        folder, unsloth_version="2025", attention_dropout=0.1, is_decoder=True, nothing_known=None, alpha=None
    )
    assert [entry.raw for entry in open_checkpoint(folder).metadata.values()] == before


def test_absent_keys_are_what_transformers_takes_for_them(copy: Callable[[str], Path]) -> None:
    """Gemma's head size is 256 where config.json is silent, not hidden_size / heads."""
    folder = copy("gemma2")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("head_dim", "query_pre_attn_scalar"):
        config.pop(key)
    path.write_text(json.dumps(config))
    with pytest.raises(SurgeryError, match=r"has shape \(64, 64\); by config.json it should be \(1024, 64\)"):
        open_checkpoint(folder)


def test_no_more_context_than_fits_in_a_window_that_llama_cpp_does_not_have(copy: Callable[[str], Path]) -> None:
    folder = copy("mistral")
    for window, expected in ((40, 40), (4096, 128), (None, 128)):
        change_config(folder, sliding_window=window)
        assert open_checkpoint(folder).hyperparameter("context_length") == expected
    shutil.rmtree(folder)
    folder = copy("qwen2")
    windows: list[tuple[dict[str, Any], int]] = [
        ({"use_sliding_window": False, "sliding_window": 40}, 128),
        ({"use_sliding_window": True, "sliding_window": 40, "layer_types": None, "max_window_layers": 2}, 128),
        ({"max_window_layers": 1}, 40),
        ({"layer_types": ["sliding_attention", "full_attention"]}, 40),
    ]
    for changes, expected in windows:
        change_config(folder, **changes)
        assert open_checkpoint(folder).hyperparameter("context_length") == expected


def assert_parity(folder: Path, reference: Path, output: Path) -> None:
    write_model(open_checkpoint(folder), output)
    expected = reference_logits(reference_model(reference), IDS)
    np.testing.assert_allclose(llama_cpp_logits(output, IDS), expected, atol=1e-3, rtol=0)


def test_an_output_matrix_beside_tied_embeddings_is_written(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("qwen2")
    change_config(folder, tie_word_embeddings=True)
    assert_parity(folder, folder, tmp_path / "out.gguf")
    assert "output.weight" in open_gguf(tmp_path / "out.gguf").tensors
    change_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert "output.weight" not in open_checkpoint(folder).tensors
    change_weights(folder, lambda w: w.pop("model.embed_tokens.weight"))
    assert_parity(folder, folder, tmp_path / "tied.gguf")


def test_gemma_has_no_place_for_another_output_matrix(copy: Callable[[str], Path]) -> None:
    folder = copy("gemma2")
    change_weights(folder, lambda w: w.update({"lm_head.weight": torch.ones(512, 64)}))
    with pytest.raises(SurgeryError, match=r"lm_head\.weight is not the embeddings"):
        open_checkpoint(folder)


def to_meta_names(weights: dict[str, torch.Tensor], heads: dict[str, int]) -> dict[str, torch.Tensor]:
    """As in consolidated.safetensors: other names, and q and k in the order of neighbouring pairs."""
    names = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "lm_head": "output",
    }  # fmt: skip
    renamed = {}
    for name, tensor in weights.items():
        for part, count in heads.items():
            if part in name:
                tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[name.removeprefix("model.")] = tensor
    return renamed


def test_metas_own_names_are_in_llama_cpps_order_already(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("llama")
    reference = Path(shutil.copytree(folder, tmp_path / "reference"))
    renamed = to_meta_names(load_file(folder / WEIGHTS), {"q_proj": 4, "k_proj": 2})
    save_file(renamed, folder / WEIGHTS)
    assert_parity(folder, reference, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("base_model.model.", "begin with a PEFT wrapper's base_model."),
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("model.language_model.", "a vision model's text part's model.language_model."),
        ("student.", "are not called as transformers calls them"),
        ("", "are not called as transformers calls them"),
    ],
)
def test_prefixes_of_wrappers_are_named(prefix: str, message: str, copy: Callable[[str], Path]) -> None:
    folder = copy("qwen3")
    for inner in ("model.", "") if prefix != "" else ("",):
        weights = {prefix + inner + name.removeprefix("model."): t for name, t in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS)
        with pytest.raises(SurgeryError, match=message):
            open_checkpoint(folder)
        weights = {"model." + name.removeprefix(prefix + inner): t for name, t in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS)


def test_adapters_are_named(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen3")
    change_weights(folder, lambda w: w.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 64)}))
    with pytest.raises(SurgeryError, match="holds tensors of an adapter"):
        open_checkpoint(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(SurgeryError, match="is an adapter"):
        open_checkpoint(folder)


def test_shards_without_an_index_are_named(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen3")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(SurgeryError, match=r"but not their index; get model\.safetensors\.index\.json, too"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(
    value: float, dtype: torch.dtype, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    """In tensors that are copied and in those that are converted."""
    folder = copy("qwen2")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        weights = {key: tensor.to(dtype) for key, tensor in load_file(folder / WEIGHTS).items()}
        kept = weights[name].clone()
        weights[name].view(-1)[5] = value
        save_file(weights, folder / WEIGHTS)
        model = open_checkpoint(folder)
        with pytest.raises(SurgeryError, match=f"tensor {name} holds NaN or infinity"):
            write_model(model, tmp_path / "out.gguf")
        with pytest.raises(SurgeryError, match=f"tensor {name} holds NaN or infinity"):
            operate(model, tmp_path / "out.gguf", Plan(rank=2, threshold=None))
        assert not (tmp_path / "out.gguf").exists()
        save_file(weights | {name: kept}, folder / WEIGHTS)


def test_a_value_that_bf16_rounds_to_infinity_is_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("qwen2")
    change_weights(folder, lambda w: w["model.layers.1.mlp.up_proj.weight"].view(-1)[:1].fill_(3.4e38))
    result = call("convert", folder, tmp_path / "out.gguf", "--outtype", "bf16")
    assert result.exit_code == 1
    assert "tensor blk.1.ffn_up.weight holds values too large for BF16; use --outtype f32" in result.output
    assert call("convert", folder, tmp_path / "out.gguf").exit_code == 0


@pytest.mark.parametrize("layers", [10**4, 10**9, 2**31 - 1])
def test_a_number_of_layers_is_held_against_the_tensors_first(layers: int, copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2")
    change_config(folder, num_hidden_layers=layers, vocab_size=10**9, layer_types=None)
    started = time.process_time()
    with pytest.raises(SurgeryError, match=f"num_hidden_layers is {layers}, but there are"):
        open_checkpoint(folder)
    assert time.process_time() - started < 5


def test_json_that_is_nested_without_end_or_repeats_itself(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2")
    config = folder / "config.json"
    text = config.read_text()
    config.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(SurgeryError, match="nested too deeply"):
        open_checkpoint(folder)
    config.write_text(text.replace("{", '{"vocab_size": 1000000000000,', 1))
    with pytest.raises(SurgeryError, match="'vocab_size' is there twice, as 1000000000000 and as 512"):
        open_checkpoint(folder)


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(shape=[float("inf"), 1]), "is described wrongly"),
        (lambda entry: entry.update(data_offsets=[0, float("inf")]), "is described wrongly"),
        (lambda entry: entry.update(shape=[-64]), "is described wrongly"),
        (lambda entry: entry.update(shape=[True] * 64), "is described wrongly"),
        (lambda entry: entry.update(shape=[1] * 1000 + [64]), "is described wrongly"),
        (lambda entry: entry.update(dtype=["F32"]), "is described wrongly"),
        (lambda entry: entry.update(dtype="F8_E4M3"), "is stored as F8_E4M3"),
        (lambda entry: entry.update(data_offsets=[0, 256]), "overlaps another tensor|takes"),
        (lambda entry: entry.update(shape=[2**70]), "takes 256 bytes"),
    ],
)
def test_safetensors_headers_that_lie(change: Any, message: str, copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2")
    rewrite_header(folder / WEIGHTS, lambda header: change(header["model.norm.weight"]))
    with pytest.raises(SurgeryError, match=message):
        open_checkpoint(folder)


def test_ranges_must_cover_the_data(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2")
    path = folder / WEIGHTS
    whole = path.read_bytes()
    rewrite_header(path, lambda header: header.pop("model.norm.weight"))
    with pytest.raises(SurgeryError, match=r"comes after bytes of no tensor|bytes after its last tensor"):
        open_checkpoint(folder)
    path.write_bytes(whole + bytes(8))
    with pytest.raises(SurgeryError, match="has 8 bytes after its last tensor"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS])
def test_the_checkpoints_own_files_are_never_overwritten(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2")
    before = (folder / name).read_bytes()
    for command in (["convert", folder, folder / name], ["operate", folder, "-o", folder / name]):
        result = call(*command, "--force")
        assert result.exit_code == 2, result.output
        assert "is the input itself" in result.output
        assert (folder / name).read_bytes() == before


def test_matrices_of_several_types_keep_theirs(copy: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing is rounded because another matrix is in a smaller type."""
    folder = copy("qwen2")
    weights = load_file(folder / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: t if key == name else t.bfloat16() for key, t in weights.items()}, folder / WEIGHTS)
    write_model(open_checkpoint(folder), tmp_path / "out.gguf")
    model = open_gguf(tmp_path / "out.gguf")
    assert {model.tensors[f"blk.1.ffn_{part}.weight"].type.name for part in ("up", "down")} == {"F32", "BF16"}
    np.testing.assert_array_equal(model.read("blk.1.ffn_up.weight"), weights[name].numpy())
