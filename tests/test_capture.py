"""Moments from llama.cpp's callback against a Llama written in numpy."""

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from native.capture import MOST_IN_MEMORY, CapturedPart, capture_moments
from native.errors import NativeError
from native.library import GGMLTensor, check_library, op_number
from native.model import ContextOptions, load_model
from native.on_disk import Sums
from pipeline.attention import find_projections
from pipeline.calibration.calibrate import watched_inputs
from pipeline.gguf_file.reader import open_gguf
from pipeline.observations.moments import MomentSums
from pipeline.quantization import quantize
from pipeline.targets import TARGETS
from tests.captured import TEXT, capture, relative
from tests.reference_llama import trace_llama
from tests.tiny_architectures import write_latent_attention, write_mixture
from tests.tiny_model import TinyModel


def assert_equal_to_reference(path: Path, text: str, n_ctx: int, chunks: int, tolerance: float) -> None:
    with load_model(str(path)) as model:
        tokens = model.tokenize(text, special=False)
    start, parts = capture(path, text, n_ctx=n_ctx, chunks=chunks, roles=TARGETS)
    assert (start.chunks, start.n_ctx) == (chunks, n_ctx)
    assert sum(part.chunks for part in parts) == chunks
    traces = [trace_llama(open_gguf(path), tokens[i * n_ctx : (i + 1) * n_ctx]) for i in range(chunks)]
    for layer, inputs in parts[0].inputs.items():
        for name, what in {"attn_heads": "mixed", "ffn_input": "y", "ffn_result": "made"}.items():
            rows = np.vstack([getattr(run[layer], what) for run in traces])
            assert inputs[name].keys() == {"count", "sum", "second_moment"}
            assert relative(inputs[name]["sum"], rows.sum(axis=0)) < 5 * tolerance
            assert relative(inputs[name]["second_moment"], rows.T @ rows) < 5 * tolerance
        sums = inputs["attn_input"]
        expected_sum, expected, received = 0.0, 0.0, 0.0
        mixed = 0.0
        for trace in (run[layer] for run in traces):
            mass = trace.probabilities.sum(axis=1).mean(axis=0)
            expected_sum = expected_sum + trace.x.sum(axis=0)
            expected = expected + trace.x.T @ trace.x
            received = received + (trace.x * mass[:, None]).T @ trace.x
            mixed = mixed + np.square(trace.mixed).sum(axis=0)
        assert sums["second_moment"].dtype == np.float64
        assert relative(sums["sum"], np.asarray(expected_sum)) < tolerance
        assert relative(sums["second_moment"], np.asarray(expected)) < tolerance
        assert relative(sums["received"], np.asarray(received)) < tolerance
        squares, count = parts[0].products[f"blk.{layer}.attn_output.weight"]
        assert count == chunks * n_ctx
        assert relative(squares, np.asarray(mixed)) < 5 * tolerance  # the KV cache is F16
        squares, count = parts[0].products[f"blk.{layer}.attn_k.weight"]
        np.testing.assert_allclose(squares, np.diag(sums["second_moment"]), rtol=1e-5)


def test_moments_equal_those_of_a_llama_in_numpy(tiny: Path) -> None:
    assert_equal_to_reference(tiny, TEXT, n_ctx=64, chunks=3, tolerance=1e-3)


def test_moments_of_the_real_model_equal_those_of_a_llama_in_numpy(embedded: Path, tmp_path: Path) -> None:
    whole = tmp_path / "f16.gguf"  # products with F16 weights are exact enough; with Q4_1 they round the activations
    quantize(open_gguf(embedded), whole, "F16")
    assert_equal_to_reference(whole, TEXT, n_ctx=64, chunks=1, tolerance=1e-3)


def test_sums_in_files_are_those_in_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watched_inputs(find_projections(open_gguf(tiny), TARGETS))
    options, found = ContextOptions(n_ctx=32, n_batch=32, threads=1), []
    for most in (0, MOST_IN_MEMORY):
        monkeypatch.setattr("native.capture.MOST_IN_MEMORY", most)
        events = capture_moments(str(tiny), TEXT, watched, chunks=3, skip=0, options=options)
        sums = MomentSums()
        for part in (event for event in events if isinstance(event, CapturedPart)):
            sums.add(part.chunks, part.inputs, part.products)
        found.append(sums.inputs)
    assert {name for inputs in found[0].values() for name in inputs} >= {"attn_input", "ffn_input", "ffn_result"}
    for layer, inputs in found[0].items():
        for name, arrays in inputs.items():
            for what, values in arrays.items():
                np.testing.assert_allclose(values, found[1][layer][name][what], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory there is")
def test_what_is_in_files_is_not_in_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    sums, before = Sums(1 << 20), resident()
    totals = [sums.begin(np.full(1 << 20, n, np.float32)) for n in range(16)]
    for total in totals:
        sums.add(total, np.ones(1 << 20))
    assert resident() - before < sum(total.nbytes for total in totals) / 2
    assert all((total == n + 1).all() for n, total in enumerate(totals))


@pytest.mark.parametrize(
    "shape",
    [
        TinyModel(fused=True, architecture="phi3"),
        TinyModel(bias=True, architecture="qwen2"),
        TinyModel(kv_heads=1),
        TinyModel(key_length=32, value_length=32),
    ],
)
def test_every_shape_of_attention_is_observed(make_tiny: Callable[[TinyModel], Path], shape: TinyModel) -> None:
    _, parts = capture(make_tiny(shape), TEXT, n_ctx=64, chunks=1)
    assert sorted(parts[0].inputs) == list(range(shape.layers))
    for inputs in parts[0].inputs.values():
        assert np.trace(inputs["attn_input"]["received"]) == pytest.approx(
            64 * shape.width, rel=1e-3
        )  # every x has |x|^2 = width


def test_a_run_that_goes_on_adds_up_to_one_that_was_never_interrupted(tiny: Path) -> None:
    _, whole = capture(tiny, TEXT, n_ctx=64, chunks=3)
    _, rest = capture(tiny, TEXT, n_ctx=64, chunks=3, skip=1)
    _, first = capture(tiny, TEXT, n_ctx=64, chunks=1)
    some, others, all_ = (parts[0].inputs[1]["attn_input"]["received"] for parts in (first, rest, whole))
    assert relative(some + others, all_) < 1e-6  # summed in float32


def test_a_text_shorter_than_a_chunk_is_refused(tiny: Path) -> None:
    with pytest.raises(NativeError, match="at least 512 are needed"):
        capture(tiny, "short", n_ctx=512)


def test_the_covered_text_is_what_the_chunks_hold(tiny: Path) -> None:
    start, _ = capture(tiny, TEXT, n_ctx=64, chunks=2)
    assert TEXT.startswith(start.covered_text)
    assert start.covered_text
    assert start.rope == "norm"


def test_the_layout_of_tensors_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    check_library()
    assert op_number("MUL_MAT") > 0
    with pytest.raises(NativeError, match="no such operation"):
        op_number("NONSENSE")
    fields = [("padding", GGMLTensor._fields_[1][1]), *GGMLTensor._fields_]
    shifted = type("GGMLTensor", (ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setattr("native.library.GGMLTensor", shifted)
    with pytest.raises(NativeError, match="ggml_tensor"):
        check_library()


def test_each_expert_has_the_squares_of_what_is_routed_to_it(tmp_path: Path) -> None:
    """With all experts used, each sees every token; with two of four, together they see two for each token."""
    experts, tokens = 4, 64
    sums = {}
    for used in (2, experts):
        path = write_mixture(tmp_path / f"{used}.gguf", experts, used)
        _, [part] = capture(path, TEXT, n_ctx=tokens, chunks=1)
        sums[used] = part.products
    name = "blk.0.ffn_up_exps.weight"
    squares, counts = sums[experts][name]
    assert counts.tolist() == [tokens] * experts
    x, _ = sums[experts]["blk.0.ffn_gate_inp.weight"]
    np.testing.assert_allclose(squares.reshape(experts, -1), np.tile(x, (experts, 1)), rtol=1e-5)
    squares, counts = sums[2][name]
    assert counts.sum() == 2 * tokens
    assert len(set(counts.tolist())) > 1
    assert squares.sum() == pytest.approx(2 * x.sum(), rel=1e-5)
    down, counts_down = sums[2]["blk.0.ffn_down_exps.weight"]
    assert counts_down.tolist() == counts.tolist()
    assert down.size == experts * TinyModel().feed_forward


def test_latents_are_inputs(tmp_path: Path) -> None:
    _, [part] = capture(write_latent_attention(tmp_path / "m.gguf"), TEXT, n_ctx=64, chunks=1)
    sizes = {"attn_input": 64, "q_latent": 24, "kv_latent": 32}
    for inputs in part.inputs.values():
        assert {name: len(arrays["sum"]) for name, arrays in inputs.items()} == sizes
        for name in ("q_latent", "kv_latent"):  # normalised, with weights of one
            assert np.trace(inputs[name]["second_moment"]) == pytest.approx(64 * sizes[name], rel=1e-3)
            assert np.trace(inputs[name]["received"]) == pytest.approx(64 * sizes[name], rel=1e-3)
        assert inputs["attn_input"]["rope"].tolist() == [8, 0]  # features that are rotated, pairs of neighbours
