"""Moments from llama.cpp's callback against a Llama written in numpy."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from native.capture import CapturedPart, CaptureStart, capture_moments
from native.errors import NativeError
from native.isolated import isolated
from native.library import GGMLTensor, check_library, op_number
from native.model import ContextOptions, load_model
from pipeline.attention import find_attention
from pipeline.gguf_file.reader import open_gguf
from pipeline.quantization import quantize
from tests.reference_llama import trace_llama
from tests.tiny_model import TinyModel

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune is in want. " * 3


def capture(
    path: Path, text: str, *, n_ctx: int, chunks: int | None = None, skip: int = 0
) -> tuple[CaptureStart, list[CapturedPart]]:
    layers = {p["q"].tensor: layer for layer, p in find_attention(open_gguf(path)).layers.items()}
    options = ContextOptions(n_ctx=n_ctx, n_batch=n_ctx)
    events = list(isolated(capture_moments, str(path), text, layers, chunks=chunks, skip=skip, options=options))
    start = events[0]
    assert isinstance(start, CaptureStart)
    rounds: list[CapturedPart] = []
    attention: dict[int, dict[str, np.ndarray]] = {}
    for part in (event for event in events if isinstance(event, CapturedPart)):
        attention |= part.attention
        if part.chunks:  # the last part of a round
            rounds.append(CapturedPart(part.chunks, attention, part.products))
            attention = {}
    return start, rounds


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def assert_equal_to_reference(path: Path, text: str, n_ctx: int, chunks: int, tolerance: float) -> None:
    with load_model(str(path)) as model:
        tokens = model.tokenize(text, special=False)
    start, parts = capture(path, text, n_ctx=n_ctx, chunks=chunks)
    assert (start.chunks, start.n_ctx) == (chunks, n_ctx)
    assert sum(part.chunks for part in parts) == chunks
    traces = [trace_llama(open_gguf(path), tokens[i * n_ctx : (i + 1) * n_ctx]) for i in range(chunks)]
    for layer, sums in parts[0].attention.items():
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
    assert sorted(parts[0].attention) == list(range(shape.layers))
    for sums in parts[0].attention.values():
        assert np.trace(sums["received"]) == pytest.approx(64 * shape.width, rel=1e-3)  # every x has |x|^2 = width


def test_a_run_that_goes_on_adds_up_to_one_that_was_never_interrupted(tiny: Path) -> None:
    _, whole = capture(tiny, TEXT, n_ctx=64, chunks=3)
    _, rest = capture(tiny, TEXT, n_ctx=64, chunks=3, skip=1)
    _, first = capture(tiny, TEXT, n_ctx=64, chunks=1)
    both = first[0].attention[1]["received"] + rest[0].attention[1]["received"]
    np.testing.assert_allclose(both, whole[0].attention[1]["received"], rtol=1e-6, atol=1e-6)


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
