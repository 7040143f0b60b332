"""Finding q, k and v: separate and fused, any head counts, layers without them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.attention import find_attention, parse_layers, read_projection
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import open_gguf
from tests.tiny_model import TinyModel, tensors_of

MODELS = {
    "multi-head": TinyModel(kv_heads=4),
    "grouped": TinyModel(),
    "multi-query": TinyModel(kv_heads=1),
    "own head sizes": TinyModel(key_length=32, value_length=8),
    "biases": TinyModel(architecture="qwen2", bias=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_finds_separate_projections(make_tiny: Callable[[TinyModel], Path], name: str) -> None:
    model = MODELS[name]
    opened = open_gguf(make_tiny(model))
    attention = find_attention(opened)
    assert list(attention.layers) == [0, 1]
    for layer, projections in attention.layers.items():
        for role in "qkv":
            assert np.array_equal(
                read_projection(opened, projections[role]), tensors_of(model)[f"blk.{layer}.attn_{role}.weight"]
            )


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_splits_a_fused_tensor(make_tiny: Callable[[TinyModel], Path], heads: tuple[int, int]) -> None:
    model = TinyModel(heads=heads[0], kv_heads=heads[1], key_length=16, value_length=8)
    fused = open_gguf(make_tiny(replace(model, architecture="phi3", fused=True)))
    separate = tensors_of(model)
    for role, projection in find_attention(fused).layers[0].items():
        assert np.array_equal(read_projection(fused, projection), separate[f"blk.0.attn_{role}.weight"])


def test_lists_layers_without_attention(make_tiny: Callable[[TinyModel], Path]) -> None:
    attention = find_attention(open_gguf(make_tiny(TinyModel(layers=4, without_attention=(1, 2)))))
    assert list(attention.layers) == [0, 3]
    assert attention.skipped == {1: "no attention", 2: "no attention"}


def test_refuses_a_model_without_attention(make_tiny: Callable[[TinyModel], Path]) -> None:
    with pytest.raises(SurgeryError, match="no layer of this mamba model has attn_q"):
        find_attention(open_gguf(make_tiny(TinyModel(architecture="mamba", without_attention=(0, 1)))))


@pytest.mark.parametrize("count", [0, 21, 2**31, 2.0, True, "2", [2]])
def test_refuses_a_number_of_layers_that_cannot_be(tiny: Path, count: object) -> None:
    model = open_gguf(tiny)
    model.metadata["llama.block_count"] = metadata_entry("llama.block_count", count)
    with pytest.raises(
        SurgeryError, match=f"{re.escape(f'llama.block_count is {count!r};')} expected a (whole )?number"
    ):
        find_attention(model)


def test_refuses_a_fused_tensor_that_contradicts_the_head_counts(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "phi3")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_tensor("blk.0.attn_qkv.weight", np.zeros((95, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(SurgeryError, match=r"32 \+ 32 \+ 32 rows"):
        find_attention(open_gguf(tmp_path / "m.gguf"))


CONTRADICTIONS = {
    "no heads": ({"heads": 0}, "attention.head_count is 0, but q in blk.0.attn_q.weight has 64 rows"),
    "odd heads": ({"heads": 5}, "attention.head_count is 5, but q in blk.0.attn_q.weight has 64 rows"),
    "other heads": ({"heads": 8}, "attention.head_count is 8, but in layer 0 q would then have 8 features a head"),
    "no kv heads": ({"kv_heads": 0}, "head_count_kv is 0, but k in blk.0.attn_k.weight has 32 rows"),
    "odd kv heads": ({"kv_heads": 3}, "head_count_kv is 3, but k in blk.0.attn_k.weight has 32 rows"),
    "width": ({"width": 32}, "embedding_length is 32, but blk.0.attn_q.weight has 64 columns"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_refuses_metadata_that_contradicts_the_shapes(tiny: Path, tmp_path: Path, case: str) -> None:
    changes, message = CONTRADICTIONS[case]
    keys = {"heads": "attention.head_count", "kv_heads": "attention.head_count_kv", "width": "embedding_length"}
    model = open_gguf(tiny)
    for name, value in changes.items():
        key = f"llama.{keys[name]}"
        model.metadata[key] = metadata_entry(key, value)
    with pytest.raises(SurgeryError, match=message):
        find_attention(model)


def test_a_list_of_head_counts_is_one_for_each_layer(tiny: Path) -> None:
    model = open_gguf(tiny)
    model.metadata["llama.attention.head_count"] = metadata_entry("llama.attention.head_count", [4, 4])
    assert list(find_attention(model).layers) == [0, 1]
    model.metadata["llama.attention.head_count"] = metadata_entry("llama.attention.head_count", [4])
    with pytest.raises(SurgeryError, match=r"head_count is 0, but q in blk\.1"):
        find_attention(model)


@pytest.mark.parametrize(
    ("text", "layers"), [("all", [0, 1, 2, 5]), ("1", [1]), ("0-2", [0, 1, 2]), ("5,0-1", [0, 1, 5]), ("2-5", [2, 5])]
)
def test_parses_layers(text: str, layers: list[int]) -> None:
    assert parse_layers(text, [0, 1, 2, 5]) == layers


@pytest.mark.parametrize("text", ["", "x", "1,", "-1", "2-1", "0-9", "3", "1.5"])
def test_refuses_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(UsageError, match="`layers="):
        parse_layers(text, [0, 1, 2, 5])
