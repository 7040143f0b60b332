"""Quantisation: single matrices give the bytes of llama.cpp's whole-file quantiser, and whole files work."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from native.errors import NativeError
from native.library import ggml_base
from native.quantize_file import FILE_TYPES, file_type
from native.quantize_rows import quantize_rows
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.observations.importance_matrix import read_importance_matrix
from pipeline.operation.operate import operate, operate_family
from pipeline.operation.operate_and_quantize import operate_and_quantize
from pipeline.operation.patch import write_patched
from pipeline.operation.plan import Plan
from pipeline.quantization import quantize, quantized_bytes, quantized_types
from tests.commands import call, call_json
from tests.same_weights import assert_same_weights
from tests.statistics import write_made_up_importance
from tests.tiny_model import with_number


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_rows_are_quantised_as_in_a_whole_file(wide: Path, tmp_path: Path, kind: str, with_importance: bool) -> None:
    source = wide
    importance = tmp_path / "imatrix.gguf"
    weights = write_made_up_importance(importance, open_gguf(source))
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
    assert result.type == "Q4_K_M"
    assert result.fallbacks["blk.0.attn_q.weight"] == "Q5_0"
    for name, kind in result.fallbacks.items():
        assert open_gguf(tmp_path / "q.gguf").tensors[name].type.name == kind
    shown = [call("quantize", tiny, "r.gguf", "q4_k_m"), call("operate", tiny, "-o", "o.gguf", "--quant", "q4_k_m")]
    for printed in shown:
        assert f"{len(result.fallbacks)} tensors fell back to another type" in printed.stdout
        assert re.search(r"^  blk.0.attn_q.weight +Q5_0$", printed.stdout, re.MULTILINE)


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
    with pytest.raises(SurgeryError, match="not an importance matrix"):
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
    means = write_made_up_importance(tmp_path / "imatrix.gguf", open_gguf(tiny))
    read = read_importance_matrix(tmp_path / "imatrix.gguf")
    assert read.keys() == means.keys()
    assert all(np.allclose(read[name], means[name]) for name in means)


def with_tensors(path: Path, tensors: dict[str, np.ndarray], alignment: int = 32) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"blk.0.attn_q.weight": (1, 64), "blk.0.attn_k.weight": (1, 64)}, None),
        ({"blk.0.attn_q.weight": (1, 32)}, "has 32 numbers for blk.0.attn_q.weight, whose shape needs 64"),
        ({"encoder.weight": (1, 64)}, "names none of the matrices"),
    ],
)
def test_a_matrix_of_another_model_is_refused_and_gaps_are_named(
    tiny: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], said: str | None
) -> None:
    entries = {f"{name}.in_sum2": np.ones(shape, np.float32) for name, shape in tensors.items()}
    entries |= {f"{name}.counts": np.ones((1, 1), np.float32) for name in tensors}
    path = with_tensors(tmp_path / "i.gguf", entries)
    result = call("quantize", tiny, "q.gguf", "Q4_0", "--imatrix", path)
    if said:
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert said in result.stderr
        assert not Path("q.gguf").exists()
    else:
        assert "importance matrix: covers 2 of 15 matrices; not token_embd.weight, blk.0.attn_v.weight" in result.stdout


@pytest.mark.parametrize(
    ("sums", "counts", "said"),
    [
        (np.ones((2, 5)), np.ones((3, 1)), "has 3 counts for 10 sums"),
        (-np.ones((1, 64)), np.ones((1, 1)), "below 0"),
        (np.full((1, 64), np.nan), np.ones((1, 1)), "NaN"),
        (np.zeros((0, 64)), np.zeros((0, 1)), "0 counts"),
    ],
)
def test_a_damaged_importance_matrix_is_refused(
    tmp_path: Path, sums: np.ndarray, counts: np.ndarray, said: str
) -> None:
    name = "blk.0.attn_q.weight"
    entries = {f"{name}.in_sum2": sums.astype(np.float32), f"{name}.counts": counts.astype(np.float32)}
    with pytest.raises(SurgeryError, match=f"i.gguf.*{said}"):
        read_importance_matrix(with_tensors(tmp_path / "i.gguf", entries))


@pytest.mark.parametrize("alignment", [16, 64, 256])
def test_a_source_of_another_alignment(tiny: Path, english: Path, tmp_path: Path, alignment: int) -> None:
    """llama.cpp's quantiser pads to 32 bytes whatever the file says, and wrote what nobody could read."""
    model = open_gguf(tiny)
    entries = [entry for key, entry in model.metadata.items() if key != "general.alignment"]
    entries.append(metadata_entry("general.alignment", alignment))
    declared = [TensorDeclaration(t.name, t.shape, t.type) for t in model.tensors.values()]
    # one tensor whose bytes are no multiple of the alignment, behind which places differ
    declared.insert(0, TensorDeclaration("rope_freqs.weight", (8,), gguf.GGMLQuantizationType.F32))  # of factor 1
    with create_gguf(Path("a.gguf"), entries, declared, alignment=alignment, force=False) as writer:
        writer.put("rope_freqs.weight", np.ones(8, np.float32).view(np.uint8))
        for name in model.tensors:
            writer.copy_from(model, name)
    shown = [call_json("eval", path, "--text", english, "--ctx", 64, "--chunks", 2)["ppl"] for path in (tiny, "a.gguf")]
    assert shown[0] == pytest.approx(shown[1])
    quantize(open_gguf(Path("a.gguf")), Path("q.gguf"), "Q8_0")
    written = open_gguf(Path("q.gguf"))
    assert written.alignment == 32
    assert np.allclose(written.read("blk.1.ffn_down.weight"), model.read("blk.1.ffn_down.weight"), atol=0.01)
    made = call("operate", "a.gguf", "-o", "o.gguf", "--quant", "Q8_0", "--threshold", 1)
    assert made.exit_code == 0, made.output
    assert Path("o.gguf").read_bytes() == Path("q.gguf").read_bytes()
    operate_family(open_gguf(Path("a.gguf")), {Path("t.gguf"): Plan(threshold=0.5)}, operated_only=True)
    write_patched(written, open_gguf(Path("t.gguf")), Path("p.gguf"))
    assert np.array_equal(
        open_gguf(Path("p.gguf")).read("blk.1.ffn_down.weight"), written.read("blk.1.ffn_down.weight")
    )


def test_two_at_once_on_one_output_write_what_each_was_asked_for(tiny: Path, tmp_path: Path) -> None:
    mine = tmp_path / ".o.gguf.operated"  # a name that a file in between once had
    mine.write_text("the user's own")
    plans = [Plan(threshold=threshold) for threshold in (0.3, 0.9)]
    output, alone = tmp_path / "o.gguf", []
    for plan in plans:
        operate_and_quantize(open_gguf(tiny), output, plan, "Q8_0", threads=1, force=True)
        alone.append(output.read_bytes())

    def write(plan: Plan) -> str:
        report, _ = operate_and_quantize(open_gguf(tiny), output, plan, "Q8_0", threads=1, force=True)
        return report.output

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, plans)) == [str(output)] * 2
    written = open_gguf(output)
    (found,) = (plan for plan in plans if plan.threshold == written.get("surgery.threshold"))
    output.with_name("alone.gguf").write_bytes(alone[plans.index(found)])
    assert_same_weights(written, open_gguf(output.with_name("alone.gguf")))
    assert mine.read_text() == "the user's own"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".o.gguf.operated", "alone.gguf", "o.gguf"]


def test_numbers_that_stand_alone_are_not_quantised(tmp_path: Path) -> None:
    kinds = {"i": np.int32, "d": np.float64, "f": np.float32}
    path = with_tensors(tmp_path / "n.gguf", {name: np.zeros(4, kind) for name, kind in kinds.items()})
    assert quantized_types(open_gguf(path)) == []


def test_quantised_sources_are_known(tiny: Path, embedded: Path) -> None:
    assert quantized_types(open_gguf(tiny)) == []
    assert quantized_types(open_gguf(embedded)) == ["Q4_1", "Q8_0"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_the_size_of_a_file_is_known_before_it_is_quantised(wide: Path, tmp_path: Path, kind: str) -> None:
    source = open_gguf(wide)
    written = quantize(source, tmp_path / "q.gguf", kind).output_bytes
    assert 0 <= written - quantized_bytes(source, kind) < 1024  # the type, as metadata
