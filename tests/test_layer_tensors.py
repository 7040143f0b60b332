"""What is taken for q, k and v, layer by layer, in architectures whose layers are not all alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from native.model import ContextOptions
from pipeline.attention import find_attention, read_projection
from pipeline.calibration.calibrate import calibrate
from pipeline.errors import SurgeryError
from pipeline.evaluation.evaluate import evaluate
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.inputs.texts import read_text
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.tiny_architectures import write_latent_attention

HEADS, KV_HEADS, SIZE, WIDTH = 4, 2, 16, 64
PLAIN = {"attn_q": (64, WIDTH), "attn_k": (32, WIDTH), "attn_v": (32, WIDTH)}
FUSED = {"attn_qkv": (128, WIDTH)}
GATED = {**PLAIN, "attn_q": (128, WIDTH)}
LATENT = {
    "attn_q_a": (24, WIDTH),
    "attn_q_b": (HEADS * (SIZE + 8), 24),
    "attn_kv_a_mqa": (32 + 8, WIDTH),
    "attn_k_b": (HEADS, 32, SIZE),
    "attn_v_b": (HEADS, 12, 32),
}
Layers = list[Mapping[str, tuple[int, ...]]]
Write = Callable[..., GGUFModel]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(architecture: str, layers: Layers, **hyperparameters: Any) -> GGUFModel:
        writer = gguf.GGUFWriter(tmp_path / f"{architecture}.gguf", architecture)
        rng = np.random.default_rng(0)
        known = {
            "block_count": len(layers),
            "embedding_length": WIDTH,
            "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS,
            "attention.key_length": SIZE,
            "attention.value_length": SIZE,
        }
        for name, value in (known | {name.replace("__", "."): v for name, v in hyperparameters.items()}).items():
            key = f"{architecture}.{name}"
            writer.add_array(key, value) if isinstance(value, list) else writer.add_uint32(key, value)
        for number, tensors in enumerate(layers):
            for name, shape in {"ffn_norm": (WIDTH,), **tensors}.items():
                values = rng.standard_normal(shape).astype(np.float32)
                writer.add_tensor(f"blk.{number}.{name}.weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return open_gguf(tmp_path / f"{architecture}.gguf")

    return written


@pytest.mark.parametrize("qkv", [(128, WIDTH), (96, WIDTH)])
@pytest.mark.parametrize("architecture", ["qwen35", "qwen3next", "minimax-01"])
def test_linear_attention_is_left_alone_also_where_its_height_agrees(
    write: Write, architecture: str, qkv: tuple[int, int]
) -> None:
    layers: Layers = [{"attn_qkv": qkv}, GATED if architecture != "minimax-01" else PLAIN] * 2
    attention = find_attention(write(architecture, layers, full_attention_interval=2))
    assert list(attention.layers) == [1, 3]
    assert attention.skipped == {0: "linear attention", 2: "linear attention"}


def test_recurrent_layers_may_be_listed(write: Write) -> None:
    model = write("qwen35", [GATED, FUSED, FUSED], attention__recurrent_layers=[0, 1, 1])
    assert list(find_attention(model).layers) == [0]


def test_every_fourth_layer_by_default(write: Write) -> None:
    assert list(find_attention(write("qwen3next", [FUSED, FUSED, FUSED, GATED])).layers) == [3]


@pytest.mark.parametrize("architecture", ["kimi-linear", "jamba", "lfm2", "plamo2", "granitehybrid"])
def test_layers_without_key_value_heads_have_no_softmax_attention(write: Write, architecture: str) -> None:
    model = write(architecture, [{**PLAIN, "ssm_q_conv": (4, 4)}, FUSED], attention__head_count_kv=[0, KV_HEADS])
    if architecture == "kimi-linear":
        with pytest.raises(SurgeryError, match=r"layer 1 has blk\.1\.attn_qkv\.weight, and what kimi-linear models"):
            find_attention(model)
    else:
        assert find_attention(model).skipped == {0: "linear attention"}


def test_prediction_layers_are_left_alone(write: Write) -> None:
    attention = find_attention(write("glm4moe", [PLAIN] * 3, nextn_predict_layers=1))
    assert list(attention.layers) == [0, 1]
    assert attention.skipped == {2: "a prediction layer, which llama.cpp does not compute"}


def test_a_gate_in_qs_tensor_is_left_alone(write: Write) -> None:
    model = write("qwen35", [GATED], full_attention_interval=1)
    q = find_attention(model).layers[0]["q"]
    heads = model.read(q.tensor).reshape(HEADS, 2, SIZE, WIDTH)
    assert np.array_equal(read_projection(model, q), heads[:, 0].reshape(HEADS * SIZE, WIDTH))
    changed = model.read(q.tensor)
    q.put(changed, np.zeros((q.rows, WIDTH), np.float32))
    assert not changed.reshape(heads.shape)[:, 0].any()
    assert np.array_equal(changed.reshape(heads.shape)[:, 1], heads[:, 1])


def test_heads_counted_by_layer(write: Write) -> None:
    model = write(
        "openelm", [FUSED, {"attn_qkv": (64, WIDTH)}], attention__head_count=[4, 2], attention__head_count_kv=[2, 1]
    )
    assert [[p.rows for p in layer.values()] for layer in find_attention(model).layers.values()] == [
        [64, 32, 32],
        [32, 16, 16],
    ]


def test_k_and_v_of_unequal_size(write: Write) -> None:
    model = write("mimo2", [{"attn_qkv": (64 + 32 + 24, WIDTH)}], attention__value_length=12)
    assert [p.rows for p in find_attention(model).layers[0].values()] == [64, 32, 24]


def test_heads_of_windowed_layers_may_have_another_size(write: Write) -> None:
    sizes = {"attention__key_length_swa": 8, "attention__value_length_swa": 8}
    model = write("gemma4", [FUSED, {"attn_qkv": (64, WIDTH)}], **sizes)
    assert [layer["q"].rows for layer in find_attention(model).layers.values()] == [64, 32]


def test_layers_that_use_the_keys_of_earlier_ones_have_q_alone(write: Write) -> None:
    attention = find_attention(write("gemma4", [PLAIN, PLAIN, {"attn_q": (64, WIDTH)}], attention__shared_kv_layers=2))
    assert [[*layer] for layer in attention.layers.values()] == [["q", "k", "v"], ["q"], ["q"]]


def test_k_that_is_v_as_well(write: Write) -> None:
    attention = find_attention(write("gemma4", [{"attn_q": (64, WIDTH), "attn_k": (32, WIDTH)}]))
    assert [*attention.layers[0]] == ["q", "kv_a"]
    assert attention.layers[0]["kv_a"].targets == {"k", "v"}


def test_latent_attention(write: Write) -> None:
    model = write("deepseek2", [LATENT], attention__key_length_mla=24, attention__value_length_mla=12)
    found = find_attention(model).layers[0]
    assert {role: (p.rows, p.columns) for role, p in found.items()} == {
        "q_a": (24, 64), "q_b": (96, 24), "kv_a": (40, 64), "k_b": (64, 32), "v_b": (48, 32),
    }  # fmt: skip
    latent = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    stored = model.read("blk.0.attn_k_b.weight")  # (heads, latent, n): llama.cpp multiplies the query with it
    query = np.ones((HEADS, SIZE), np.float32)
    keys = (read_projection(model, found["k_b"]) @ latent).reshape(HEADS, SIZE)
    assert np.einsum("hn,hn->h", query, keys) == pytest.approx(np.einsum("hcn,hn,c->h", stored, query, latent), 1e-4)
    for role in found:
        values = np.zeros_like(model.read(found[role].tensor))
        found[role].put(values, read_projection(model, found[role]))
        assert np.array_equal(values, model.read(found[role].tensor))


def test_keys_and_values_of_a_latent_in_one_tensor(write: Write) -> None:
    layer = {"attn_q": (96, WIDTH), "attn_kv_a_mqa": (40, WIDTH), "attn_kv_b": (HEADS * (SIZE + 12), 32)}
    model = write("plm", [layer], attention__key_length=24, attention__value_length=12)
    found = find_attention(model).layers[0]
    heads = model.read("blk.0.attn_kv_b.weight").reshape(HEADS, SIZE + 12, 32)
    assert np.array_equal(read_projection(model, found["k_b"]), heads[:, :SIZE].reshape(-1, 32))
    assert np.array_equal(read_projection(model, found["v_b"]), heads[:, SIZE:].reshape(-1, 32))


REFUSED = {
    "fused, of an unknown kind": ("novel", [FUSED], r"blk\.0\.attn_qkv\.weight, and what novel models compute"),
    "beside a state space": ("llama", [{**PLAIN, "ssm_a": (4, 4)}], r"blk\.0\.ssm_a\.weight beside q, k and v"),
    "a latent, of an unknown kind": ("novel", [LATENT], r"blk\.0\.attn_kv_a_mqa\.weight, and what novel models"),
    "an encoder and a decoder": ("t5", [PLAIN], "a t5 model is an encoder and a decoder with attention between them"),
    "q alone": ("llama", [{"attn_q": (64, WIDTH)}], "no layer of this llama model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_name(write: Write, case: str) -> None:
    architecture, layers, message = REFUSED[case]
    with pytest.raises(SurgeryError, match=message):
        find_attention(write(architecture, layers))


@pytest.mark.parametrize("metric", ["inputs", "attention"])
def test_a_metric_is_worth_something_with_latents_as_well(tmp_path: Path, english: Path, metric: str) -> None:
    path = write_latent_attention(tmp_path / "m.gguf")
    model, text = open_gguf(path), read_text(str(english))
    calibration = calibrate(model, text, chunks=2, chunk_size=256, sensitivities=metric == "attention")
    costs = {}
    for name, statistics in (("weights", None), (metric, calibration)):
        output = tmp_path / f"{name}.gguf"
        report = operate(model, output, Plan(metric=name, threshold=None, rank=8), calibration=statistics)
        assert [group.group for group in report.groups][:4] == ["q_a", "q_b", "kv_a", "k_b+v_b"]
        options = ContextOptions(n_ctx=128)
        costs[name] = evaluate(output, text, base=path, chunks=4, options=options).kld_mean
    assert costs[metric] < costs["weights"]
