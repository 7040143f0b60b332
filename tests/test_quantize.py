"""Quantisation: single matrices give the bytes of llama.cpp's whole-file quantiser, and whole files work."""

from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from native.errors import NativeError
from native.library import ggml_base
from native.quantize_file import FILE_TYPES, file_type, read_importance_matrix
from native.quantize_rows import quantize_rows
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import open_gguf
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.quantization import quantize, quantized_types
from tests.same_weights import assert_same_weights
from tests.tiny_model import with_number


def write_importance(path: Path, source: Path) -> dict[str, np.ndarray]:
    """An importance matrix in llama.cpp's form for every matrix of `source`; the expected mean squares by tensor."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["test"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    rng = np.random.default_rng(0)
    means = {}
    for info in open_gguf(source).tensors.values():
        if len(info.shape) == 2:
            sums = rng.exponential(100, (1, info.shape[1])).astype(np.float32)
            writer.add_tensor(f"{info.name}.in_sum2", sums)
            writer.add_tensor(f"{info.name}.counts", np.full((1, 1), 50, np.float32))
            means[info.name] = sums[0] / np.float32(50)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return means


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_rows_are_quantised_as_in_a_whole_file(wide: Path, tmp_path: Path, kind: str, with_importance: bool) -> None:
    source = wide
    importance = tmp_path / "imatrix.gguf"
    weights = write_importance(importance, source)
    quantize(open_gguf(source), tmp_path / "q.gguf", kind, importance_matrix=importance if with_importance else None)
    whole, before = open_gguf(tmp_path / "q.gguf"), open_gguf(source)
    checked = 0
    for info in whole.tensors.values():
        if info.type.name == kind and info.name.startswith("blk."):
            mine = quantize_rows(before.read(info.name), info.type, weights[info.name] if with_importance else None)
            assert np.array_equal(mine, whole.read_raw(info.name)), info.name
            checked += 1
    assert checked >= 4


def test_operating_with_keep_is_quantising_the_operated_file(wide: Path, tmp_path: Path) -> None:
    plan = Plan(threshold=0.5, targets="qk", outtype="keep")
    quantize(open_gguf(wide), tmp_path / "source-q8.gguf", "Q8_0")
    operate(open_gguf(tmp_path / "source-q8.gguf"), tmp_path / "keep.gguf", plan)
    operate(open_gguf(tmp_path / "source-q8.gguf"), tmp_path / "f32.gguf", replace(plan, outtype="f32"))
    quantize(open_gguf(tmp_path / "f32.gguf"), tmp_path / "whole.gguf", "q8_0")
    keep, whole = open_gguf(tmp_path / "keep.gguf"), open_gguf(tmp_path / "whole.gguf")
    assert_same_weights(keep, whole)


def test_a_type_that_does_not_fit_falls_back_and_says_so(tiny: Path, tmp_path: Path) -> None:
    result = quantize(open_gguf(tiny), tmp_path / "q.gguf", "q4_k_m")
    assert result["type"] == "Q4_K_M"
    assert result["fallbacks"]["blk.0.attn_q.weight"] == "Q5_0"
    for name, kind in result["fallbacks"].items():
        assert open_gguf(tmp_path / "q.gguf").tensors[name].type.name == kind


def test_type_names() -> None:
    assert [file_type(name) for name in ("q4_k_m", "Q4_K", "bf16", "F32", "iq4_xs")] == [
        "Q4_K_M",
        "Q4_K_M",
        "BF16",
        "F32",
        "IQ4_XS",
    ]
    assert {"Q2_K", "Q3_K_S", "IQ1_M", "TQ1_0", "MXFP4_MOE"} <= FILE_TYPES.keys()
    assert not {"GUESSED", "NVFP4"} & FILE_TYPES.keys()
    with pytest.raises(NativeError, match="Q9: not a type"):
        file_type("Q9")


def test_every_type_on_offer_can_be_read_again() -> None:
    """A tensor type that llama.cpp has and the gguf package does not would be quantised to, and then refused."""
    known = {kind.value for kind in gguf.GGMLQuantizationType}
    names = [(ggml_base().ggml_type_name(n) or b"").decode().upper() for n in range(llama_cpp.GGML_TYPE_COUNT)]
    assert "Q4_0" in names
    assert not {name for number, name in enumerate(names) if number not in known} & FILE_TYPES.keys()


def test_refusals_leave_nothing_behind(tiny: Path, wide: Path, tmp_path: Path) -> None:
    model, output = open_gguf(wide), tmp_path / "q.gguf"
    with pytest.raises(UsageError, match="choose one of"):
        quantize(model, output, "Q9_9")
    with pytest.raises(NativeError, match="importance matrix"):
        quantize(model, output, "IQ2_XXS")
    with pytest.raises(NativeError, match="not an importance matrix"):
        quantize(model, output, "Q4_0", importance_matrix=tiny)
    with pytest.raises(NativeError, match="needs an importance matrix"):
        quantize_rows(np.zeros((1, 256), np.float32), gguf.GGMLQuantizationType.IQ2_XXS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_one_error(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], value: float
) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", "blk.1.attn_k.weight", value)
    with pytest.raises(
        NativeError, match=r"broken\.gguf: [\w .]+ Q8_0 \([^[]*tensor 'blk.1.attn_k.weight' has invalid data\)$"
    ):
        quantize(open_gguf(broken), tmp_path / "q.gguf", "Q8_0")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == [broken]


def test_an_importance_matrix_is_mean_squares(tiny: Path, tmp_path: Path) -> None:
    means = write_importance(tmp_path / "imatrix.gguf", tiny)
    read = read_importance_matrix(tmp_path / "imatrix.gguf")
    assert read.keys() == means.keys()
    assert all(np.allclose(read[name], means[name]) for name in means)


def test_quantised_sources_are_known(tiny: Path, embedded: Path) -> None:
    assert quantized_types(open_gguf(tiny)) == []
    assert quantized_types(open_gguf(embedded)) == ["Q4_1", "Q8_0"]
