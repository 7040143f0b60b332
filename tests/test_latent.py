"""Converted files: exact where they can be, refused where they cannot, and run by an unmodified llama.cpp."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from native.isolated import isolated
from native.model import ContextOptions, load_model, open_context
from native.quantize_file import FILE_TYPES, quantize_file
from pipeline.calibration.calibrate import calibrate
from pipeline.errors import SurgeryError, UsageError
from pipeline.evaluation.evaluate import evaluate
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import TensorInfo, open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.inputs.texts import read_text
from pipeline.latent.architecture import LATENT_SHARE
from pipeline.latent.byte_budget import choose_within_bytes, predicted_losses, relative_noise
from pipeline.latent.convert import LatentReport, convert_to_latent
from pipeline.latent.kind import LATENT
from pipeline.latent.layer import compress_layer
from pipeline.latent.new_types import importances, new_types
from pipeline.latent.plan import METHODS, LatentPlan, bits_per_number, choose_layout
from pipeline.latent.rotary import as_complex
from pipeline.latent.source import require_convertible
from pipeline.latent.transmla import align_folded
from pipeline.latent.weights import LatentWeights
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import Calibration, add_sensitivities, open_calibration
from tests.conftest import SurgeryProcess
from tests.tiny_model import TinyModel, tensors_of, write_tiny_model

EXACT = ContextOptions(n_ctx=512, n_batch=512, flash_attention=False, type_k="f32", type_v="f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latent")


def statistics_of(model: Path, text: Path, folder: Path, chunks: int, chunk_size: int = 512) -> Calibration:
    """Statistics kept in `folder`, with sensitivities that are made up: to measure them takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGERY_CACHE", str(folder / "cache"))
        taken = calibrate(
            open_gguf(model), read_text(str(text)), chunks=chunks, chunk_size=chunk_size, sensitivities=False
        )
    path = Path(shutil.copy(taken.path, folder / f"{model.stem}.statistics.gguf"))
    layers = open_gguf(model).hyperparameter("block_count")
    add_sensitivities(open_calibration(path), {"q": [1.0] * layers, "k": [20.0] * layers, "v": [1.0] * layers})
    return open_calibration(path)


@pytest.fixture(scope="module")
def one_head(folder: Path) -> Path:
    """A tiny model with one key/value head, whose conversion loses nothing."""
    return write_tiny_model(folder / "one.gguf", TinyModel(kv_heads=1))


@pytest.fixture(scope="module")
def one_head_statistics(one_head: Path, english: Path, folder: Path) -> Calibration:
    return statistics_of(one_head, english, folder, chunks=2)


@pytest.fixture(scope="module", params=METHODS)
def converted(one_head: Path, one_head_statistics: Calibration, folder: Path, request: pytest.FixtureRequest) -> Path:
    """`one_head` with its whole cache as rotary numbers and latent, by each method."""
    output = folder / f"one.{request.param}.gguf"
    plan = LatentPlan(cache=1, method=request.param)
    report = convert_to_latent(open_gguf(one_head), output, plan, one_head_statistics)
    assert open_gguf(output).get("surgery.method") == request.param
    assert (report.layout.rank, report.layout.pairs, report.share) == (16, 8, 1.0)
    return output


@pytest.fixture(scope="module")
def tiny_statistics(tiny: Path, english: Path, folder: Path) -> Calibration:
    return statistics_of(tiny, english, folder, chunks=2)


@pytest.fixture(scope="module")
def halved(tiny: Path, tiny_statistics: Calibration, folder: Path) -> tuple[Path, LatentReport]:
    output = folder / "tiny.latent.gguf"
    return output, convert_to_latent(open_gguf(tiny), output, LatentPlan(cache=0.5), tiny_statistics)


def logits(path: Path, tokens: np.ndarray, start: int = 0) -> np.ndarray:
    with load_model(str(path)) as model, open_context(model, EXACT) as context:
        n = len(tokens)
        context.decode(tokens, np.arange(start, start + n), np.zeros(n, int), np.ones(n, bool))
        return context.logits(n).copy()


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, count).astype(np.int32)


def test_one_key_head_loses_nothing_over_a_long_context(one_head: Path, converted: Path) -> None:
    text = tokens(500)
    source, latent = logits(one_head, text), logits(converted, text)
    assert np.abs(source).max() > 1
    assert np.abs(latent - source).max() < 1e-3


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_the_published_recipe_turns_keys_into_the_principal_components_of_their_folds(
    tiny: Path, tiny_statistics: Calibration, fold: int
) -> None:
    """But for positions nothing is lost at full rank; the strongest components of each fold are those that stay rotated."""
    model = open_gguf(tiny)
    source = require_convertible(model)
    layer = AttentionLayers(model, tiny_statistics)[1]
    layout = choose_layout(LatentPlan(cache=1, method="transmla"), source)
    aligned = align_folded(source, layer, layout, fold)
    weights, kept = compress_layer(source, aligned, layout.rank, seed=0)
    k, v = (source.by_head(layer, role) for role in "kv")
    assert kept == pytest.approx(1)
    for head in range(source.heads):
        key = weights.latent_query[head] @ weights.latent + weights.rotary_query[head] @ weights.rotary_key
        assert np.allclose(key, k[head * len(k) // source.heads], atol=1e-6)
        assert np.allclose(weights.value[head] @ weights.latent, v[head * len(k) // source.heads], atol=1e-6)

    root = np.linalg.cholesky(layer.moments("k").inputs)
    folds = (
        as_complex(k)
        .reshape(len(k), -1, fold, source.width)
        .transpose(1, 0, 2, 3)
        .reshape(-1, len(k) * fold, source.width)
    )
    squares = [np.linalg.svd(np.hstack([f.real @ root, f.imag @ root]), compute_uv=False) ** 2 for f in folds]
    found = np.square(weights.rotary_key @ root).sum(axis=1).reshape(len(folds), fold, 2).sum(axis=2)
    assert np.allclose(found, [each[:fold] for each in squares], rtol=1e-5)

    sizes = np.linalg.norm(aligned.metric.weigh(aligned.rows), axis=1)
    assert sizes[: -aligned.values].mean() == pytest.approx(sizes[-aligned.values :].mean(), rel=1e-3)


def test_positions_matter_and_only_relative_ones(converted: Path, halved: tuple[Path, LatentReport]) -> None:
    text = tokens(60)
    swapped = text.copy()
    swapped[[50, 10]] = swapped[[10, 50]]
    for path in (converted, halved[0]):
        plain = logits(path, text)
        assert np.abs(logits(path, text, start=300) - plain).max() < 1e-3
        assert np.abs(logits(path, swapped)[-1] - plain[-1]).max() > 0.01


def test_the_norm_on_the_latent_is_neutral(converted: Path, folder: Path) -> None:
    model, calibration = open_gguf(converted), open_calibration(folder / "one.statistics.gguf")
    epsilon = model.hyperparameter("attention.layer_norm_rms_epsilon")
    rank = model.hyperparameter("attention.kv_lora_rank")
    noise = np.random.default_rng(0).standard_normal((2000, 64))
    for layer in range(2):
        values, vectors = np.linalg.eigh(calibration.layer(layer).inputs)
        x = noise @ (vectors * np.sqrt(np.maximum(values, 0))).T
        z = x @ model.read(f"blk.{layer}.attn_kv_a_mqa.weight")[:rank].T.astype(float)
        square = np.mean(z**2, axis=1)
        assert square.mean() == pytest.approx(LATENT_SHARE * epsilon, rel=0.1)
        divisors = np.sqrt(square + epsilon)
        assert divisors.max() / divisors.min() - 1 < LATENT_SHARE * square.max() / square.mean()
        assert np.abs(divisors / np.sqrt(epsilon * (1 + LATENT_SHARE)) - 1).max() < 5e-4


def test_the_cache_is_as_small_as_it_says(tiny: Path, halved: tuple[Path, LatentReport]) -> None:
    sizes = []
    for path in (tiny, halved[0]):
        with load_model(str(path)) as model, open_context(model, ContextOptions(n_ctx=512)) as context:
            sizes.append(context.kv_cache_bytes)
    hundredth = 2**20 / 100  # llama.cpp logs hundredths of MiB
    assert sizes[0] == pytest.approx(2 * 512 * 2 * 64, abs=hundredth)
    assert sizes[1] == pytest.approx(2 * 512 * 2 * 32, abs=hundredth)


def test_what_is_not_attention_stays(tiny: Path, halved: tuple[Path, LatentReport]) -> None:
    before, after = open_gguf(tiny), open_gguf(halved[0])
    for name in before.tensors:
        if name.endswith(("attn_norm.weight", "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight")):
            assert np.array_equal(before.read_raw(name), after.read_raw(name))
    product = before.read("token_embd.weight") * before.read("output_norm.weight")
    assert np.array_equal(after.read("token_embd.weight") * after.read("output_norm.weight"), product)
    kept = {key: e for key, e in before.metadata.items() if not key.startswith("llama.")}
    del kept["general.architecture"]
    assert kept.items() <= after.metadata.items()
    assert after.architecture == "deepseek2"


def test_provenance_says_what_was_done(tiny: Path, halved: tuple[Path, LatentReport], english: Path) -> None:
    file, report = open_gguf(halved[0]), halved[1].to_dict()
    assert file.get("surgery.method") == "latent"
    assert file.get("surgery.cached_numbers") == report["cached_numbers"] == 32
    assert file.get("surgery.source.sha256") == open_gguf(tiny).sha256()
    assert file.get("surgery.calibration.text") == str(english)
    assert report["source_cached_numbers"] == 64
    assert report["latent_rank"] + report["rotary_numbers"] == 32
    assert len(report["layers"]) == 2
    for layer in report["layers"]:
        assert 0 < layer["energy_kept"] <= 1
        assert layer["score_error"] < layer["score_error_before"]


def test_a_fresh_process_runs_it_through_plain_llama_cpp(halved: tuple[Path, LatentReport]) -> None:
    script = (
        "import sys, llama_cpp; m = llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=False);"
        "print(len(m.create_completion('the of', max_tokens=4, temperature=0)['choices'][0]['text']) > 0)"
    )
    result = subprocess.run([sys.executable, "-c", script, halved[0]], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "True", result.stderr


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_1"])
def test_a_quantised_source_keeps_its_types(
    make_tiny: Callable[[TinyModel], Path], english: Path, tmp_path: Path, type_: str
) -> None:
    source = make_tiny(TinyModel(kv_heads=1, type=gguf.GGMLQuantizationType[type_]))
    calibration = statistics_of(source, english, tmp_path, chunks=1)
    convert_to_latent(open_gguf(source), tmp_path / "o.gguf", LatentPlan(cache=1), calibration)
    file = open_gguf(tmp_path / "o.gguf")
    assert {file.tensors[f"blk.0.{name}.weight"].type.name for name in ("ffn_down", "attn_output")} == {type_}
    assert file.tensors["blk.0.attn_k_b.weight"].type.name == "F16"
    text = tokens(100)
    difference = logits(tmp_path / "o.gguf", text) - logits(source, text)
    assert np.abs(difference).mean() < 0.05  # llama.cpp rounds activations that meet quantised weights


@pytest.mark.parametrize("type_", ["F16", "Q4_1"])
def test_new_matrices_keep_the_sources_type(
    make_tiny: Callable[[TinyModel], Path], english: Path, tmp_path: Path, type_: str
) -> None:
    """Where their rows are whole blocks: those of 16 numbers become F16. A float type keeps every byte of `auto`."""
    source = make_tiny(TinyModel(kv_heads=1, type=gguf.GGMLQuantizationType[type_]))
    calibration = statistics_of(source, english, tmp_path, chunks=1)
    files = {}
    for outtype in ("auto", "keep"):
        path = tmp_path / f"{outtype}.gguf"
        convert_to_latent(open_gguf(source), path, LatentPlan(cache=1, outtype=outtype), calibration)
        files[outtype] = open_gguf(path)
    types = {name: files["keep"].tensors[f"blk.1.{name}.weight"].type.name for name in ("attn_q", "attn_kv_a_mqa")}
    assert types == {"attn_q": type_, "attn_kv_a_mqa": type_}
    assert {files["keep"].tensors[f"blk.1.attn_{name}_b.weight"].type.name for name in "kv"} == {"F16"}
    text = tokens(100)
    before, after = (logits(tmp_path / f"{outtype}.gguf", text) for outtype in ("auto", "keep"))
    if type_ == "F16":
        assert np.array_equal(before, after)
    else:
        assert files["keep"].paths[0].stat().st_size < files["auto"].paths[0].stat().st_size
        assert np.abs(after - before).mean() < 0.5 * np.std(before)


@pytest.mark.parametrize("type_", ["Q4_1", "F32"])
def test_keep_writes_the_sources_types_and_narrower_queries(english: Path, tmp_path: Path, type_: str) -> None:
    """Half of the features of these queries depend on the others, so that narrower ones lose nothing."""
    shape = TinyModel(key_length=64, value_length=64, kv_heads=1, type=gguf.GGMLQuantizationType[type_])
    tensors = tensors_of(shape)
    for layer in range(2):
        heads = tensors[f"blk.{layer}.attn_q.weight"].reshape(4, 64, 64)
        heads[:, 32:] = heads[:, :32]
    source = write_tiny_model(tmp_path / "m.gguf", shape, tensors=tensors)
    calibration = statistics_of(source, english, tmp_path, chunks=1, chunk_size=128)
    plan, output = LatentPlan(cache=96, rotary=16, outtype="keep"), tmp_path / "o.gguf"
    report = convert_to_latent(open_gguf(source), output, plan, calibration)
    file = open_gguf(output)
    new = {name: file.tensors[f"blk.1.attn_{name}.weight"] for name in ("q", "kv_a_mqa", "k_b", "v_b")}
    assert {name: info.type.name for name, info in new.items()} == dict.fromkeys(new, type_)
    assert new["k_b"].shape == (4, report.layout.rank, 32)
    assert new["q"].shape[0] == 4 * (32 + 16)
    assert file.hyperparameter("attention.key_length_mla") == 32 + 16
    convert_to_latent(open_gguf(source), tmp_path / "whole.gguf", replace(plan, outtype="f32"), calibration)
    whole = open_gguf(tmp_path / "whole.gguf")
    kept, exact = (f.read("blk.1.attn_kv_a_mqa.weight") for f in (file, whole))
    assert np.linalg.norm(kept - exact) < (0.1 if type_ == "Q4_1" else 1e-6) * np.linalg.norm(exact)
    if type_ == "F32":
        with load_model(str(source)) as model:
            text = model.tokenize(english.read_text()[:60], special=False)  # what was never seen may be lost
        expected = logits(tmp_path / "whole.gguf", text)
        assert np.abs(logits(output, text) - expected).max() < 0.02 * expected.std()


def test_a_file_that_keeps_types_is_hardly_larger_than_its_source(embedded: Path) -> None:
    """As many bits for each new number as for the old ones; q's rotary numbers are new, half of its others left out."""
    model = open_gguf(embedded)
    layers, width, heads, head, kept, rank, rotary = 30, 576, 9, 64, 32, 128, 64
    numbers = width * heads * (kept + rotary) + width * (rank + rotary) + heads * rank * (kept + head)
    norms = 4 * rank * layers
    growth = LATENT.growth(model, LatentPlan(cache=192, outtype="keep"))
    assert growth == layers * (numbers - width * (9 + 3 + 3) * head) * 5 // 8 + norms
    assert growth < 0.05 * embedded.stat().st_size < LATENT.growth(model, LatentPlan(cache=192)) / 4


def test_types_are_those_of_what_is_replaced_or_of_llama_cpp_where_rows_are_too_short() -> None:
    kinds = gguf.GGMLQuantizationType
    source = {"q": kinds.Q4_K, "k": kinds.Q4_K, "v": kinds.Q6_K}
    replaced = {role: TensorInfo(role, (512, 512), kind, Path(), 0) for role, kind in source.items()}
    shapes = {"attn_q": (1024, 512), "attn_kv_a_mqa": (192, 512), "attn_kv_a_norm": (128,)}
    shapes |= {"attn_k_b": (8, 128, 64), "attn_v_b": (8, 64, 120)}
    types = new_types(replaced, shapes, "keep")
    assert [kind.name for kind in types.values()] == ["Q4_K", "Q6_K", "F32", "Q5_0", "F16"]


def dry_runs(path: str, kinds: list[str]) -> Generator[None, None, None]:
    """llama.cpp's quantiser to each of `kinds`, writing nothing."""
    for kind in kinds:
        yield from quantize_file(path, os.devnull, kind, dry_run=True)


def test_rows_too_short_for_a_type_get_what_llama_cpps_quantiser_takes(tiny: Path) -> None:
    """Each type of blocks of 256 that there is, in rows of 64."""
    taken: dict[str, str] = {}

    def on_log(line: str) -> None:
        taken.update(re.findall(r"REQUIRED FOR TYPE\s+(\S+)\).*FALLING BACK TO\s+(\S+)", line.upper()))

    blocks = {kind.name: size for kind, (size, _) in gguf.GGML_QUANT_SIZES.items()}
    kinds = [name for name in FILE_TYPES if re.match("I?Q[1-6]_[KXSM]|TQ", name)]
    list(isolated(dry_runs, str(tiny), kinds, on_log=on_log))
    assert set(taken) == {kind for kind, size in blocks.items() if size == 256} - {"Q8_K"}  # which no file has
    shapes = {"attn_q": (64, 64)}
    for kind, fallback in {**taken, "Q1_0": "F16", "Q4_0": "Q4_0"}.items():
        source = {role: TensorInfo(role, (64, 256), gguf.GGMLQuantizationType[kind], Path(), 0) for role in "qkv"}
        assert new_types(source, shapes, "keep")["attn_q"].name == fallback


def test_importance_is_the_mean_square_of_what_each_matrix_reads() -> None:
    rng = np.random.default_rng(0)
    x, queries, latent = rng.standard_normal((500, 8)) * np.arange(8), rng.standard_normal((3, 4, 8)), np.eye(2, 8, 5)
    empty = np.zeros((3, 4, 2))
    weights = LatentWeights(latent, np.zeros((2, 8)), empty, empty, empty, np.zeros(1))
    measured = importances(weights, queries, x.T @ x / len(x))
    assert measured["attn_q"] == pytest.approx(np.mean(x**2, axis=0))
    assert measured["attn_q"].min() > 0  # quantisers with an importance matrix divide by it
    assert measured["attn_k_b"] == pytest.approx(np.mean(np.einsum("nd,hbd->nhb", x, queries) ** 2, axis=0).ravel())
    assert measured["attn_v_b"] == pytest.approx(np.tile(np.mean((x @ latent.T) ** 2, axis=0), 3))


def with_extra(source: Path, output: Path, key: str = "", value: object = None, tensor: str = "") -> Path:
    """A copy of a model with one more metadata key or tensor."""
    model = open_gguf(source)
    metadata = [entry for name, entry in model.metadata.items() if name != key]
    declared = [TensorDeclaration(t.name, t.shape, t.type) for t in model.tensors.values()]
    extra = [TensorDeclaration(tensor, (8,), gguf.GGMLQuantizationType.F32)] if tensor else []
    metadata += [metadata_entry(key, value)] if key else []
    with create_gguf(output, metadata, [*declared, *extra], alignment=32, force=False) as writer:
        for name in model.tensors:
            writer.copy_from(model, name)
        if tensor:
            writer.put(tensor, np.ones(8, np.float32))
    return output


@pytest.mark.parametrize(
    ("key", "value", "tensor", "message"),
    [
        ("", None, "blk.0.attn_q.bias", "has biases"),
        ("", None, "blk.0.attn_k_norm.weight", "normalises q or k"),
        ("", None, "rope_factors_long.weight", "longrope"),
        ("", None, "blk.0.ffn_gate_inp_exps.weight", "a mixture of experts"),
        ("llama.rope.scaling.type", "longrope", "", "scaling.type is 'longrope'"),
        ("llama.attention.scale", 0.5, "", "attention.scale = 0.5"),
        ("llama.attention.sliding_window", 128, "", "sliding_window = 128"),
        ("llama.expert_count", 8, "", "expert_count = 8"),
        ("llama.rope.dimension_count", 7, "", "rope.dimension_count is 7"),
        ("llama.attention.head_count_kv", 3, "", "head_count_kv is 3, but k"),
        ("general.architecture", "gemma2", "", "is a gemma2 model"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tiny: Path, tmp_path: Path, key: str, value: object, tensor: str, message: str
) -> None:
    model = open_gguf(with_extra(tiny, tmp_path / "odd.gguf", key, value, tensor))
    with pytest.raises(SurgeryError, match=message):
        require_convertible(model)


def test_harmless_extras_are_taken(tiny: Path, tmp_path: Path) -> None:
    model = open_gguf(with_extra(tiny, tmp_path / "odd.gguf", "llama.expert_count", 0))
    assert require_convertible(model).cached_numbers == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": 0.0}, "cache=0`: expected"),
        ({"cache": 1.5}, "cache=1.5`: expected"),
        ({"cache": float("nan")}, "cache=nan`: expected"),
        ({"cache": 65}, "the source caches 64 numbers"),
        ({"method": "transmla", "rotary": 8}, "rotary=8`: method transmla keeps a pair at each frequency"),
        ({"method": "transmla", "cache_bytes": 0.2}, "cache_bytes=0.2`: is a choice by what method latent loses"),
        ({"cache": 2}, "leave no latent"),
        ({"rotary": 3}, "rotary=3`: expected an even number"),
        ({"rotary": 18}, "rotary=18`: the source rotates 16"),
        ({"cache": 16, "rotary": 16}, "leave no latent"),
        ({"outtype": "q4_0"}, "outtype='q4_0'`"),
        ({"cache_type": "q3_0"}, "cache_type='q3_0'`"),
        ({"cache": 48, "cache_type": "q4_0"}, "no whole blocks of q4_0; choose a multiple of 32"),
        ({"cache_bytes": 0.0}, "cache_bytes=0`"),
        ({"cache_bytes": float("nan")}, "cache_bytes=nan`"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tiny: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_layout(LatentPlan(**options), require_convertible(open_gguf(tiny)))  # type: ignore[arg-type]


def test_shares_are_whole_blocks_of_a_quantised_cache(embedded: Path) -> None:
    source = require_convertible(open_gguf(embedded))
    assert source.cached_numbers == 384
    assert [choose_layout(LatentPlan(cache=share), source).cached_numbers for share in (0.5, 0.6, 1)] == [192, 224, 384]
    assert choose_layout(LatentPlan(cache=200), source).cached_numbers == 200


@pytest.mark.parametrize("kind", ["q8_0", "q5_0", "q4_0"])
def test_the_noise_of_a_type_is_that_of_its_rounding(kind: str) -> None:
    """A step of a block of 32 normal numbers is their largest size, about 2.1, over the type's largest integer."""
    steps = 2.1 / {"q8_0": 127, "q5_0": 16, "q4_0": 8}[kind]
    assert relative_noise(kind) == pytest.approx(steps**2 / 12, rel=0.35)


def test_bytes_are_spent_on_numbers_or_bits_by_what_is_predicted_to_lose_least(
    tiny: Path, tiny_statistics: Calibration
) -> None:
    model = open_gguf(tiny)
    source, layers = require_convertible(model), AttentionLayers(model, tiny_statistics)
    for share in (0.3, 0.55, 1.0):
        chosen = choose_within_bytes(LatentPlan(cache_bytes=share), source, layers.values())
        assert chosen.cache * bits_per_number(chosen.cache_type) <= share * 16 * source.cached_numbers
        loss = sum(predicted_losses([chosen], source, layer)[0] for layer in layers.values())
        for other in (replace(chosen, cache_type="iq4_nl"), LatentPlan(cache=32, cache_type="f16")):
            if other.cache * bits_per_number(other.cache_type) <= share * 16 * source.cached_numbers:
                assert loss <= sum(predicted_losses([other], source, layer)[0] for layer in layers.values())
    with pytest.raises(UsageError, match=r"cache_bytes=0\.05`: too little"):
        choose_within_bytes(LatentPlan(cache_bytes=0.05), source, layers.values())


def test_statistics_of_another_model_are_refused(one_head: Path, tiny_statistics: Calibration, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is another file"):
        convert_to_latent(open_gguf(one_head), tmp_path / "o.gguf", LatentPlan(cache=1), tiny_statistics)
    assert not (tmp_path / "o.gguf").exists()


def test_statistics_are_all_that_is_needed_when_their_text_is_gone(tiny: Path, english: Path, tmp_path: Path) -> None:
    text = Path(shutil.copy(english, tmp_path / "moved.txt"))
    calibration = statistics_of(tiny, text, tmp_path, chunks=1)
    convert_to_latent(open_gguf(tiny), tmp_path / "a.gguf", LatentPlan(), calibration)
    text.write_text("another text\n")
    convert_to_latent(open_gguf(tiny), tmp_path / "b.gguf", LatentPlan(), calibration)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_text_that_was_calibrated_on_by_another_name_is_found(
    tiny: Path, english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    text = Path(shutil.copy(english, tmp_path / "moved.txt"))
    calibrate(open_gguf(tiny), read_text(str(text)), chunks=1)
    text.unlink()
    again = calibrate(open_gguf(tiny), read_text(str(english)), chunks=1)
    convert_to_latent(open_gguf(tiny), tmp_path / "o.gguf", LatentPlan(), again)
    assert open_gguf(tmp_path / "o.gguf").get("surgery.calibration.text") == str(english)


def test_the_command(surgery: SurgeryProcess, tiny: Path, tiny_statistics: Calibration, tmp_path: Path) -> None:
    arguments = ("latent", tiny, "-o", tmp_path / "o.gguf", "--calibration", tiny_statistics.path)
    result = surgery(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["cached_numbers"] == 32
    again = surgery(*arguments)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("surgery: ")
    assert "--force" in again.stderr
    forced = surgery(*arguments, "--force", "--cache", 40)
    assert forced.returncode == 0, forced.stderr
    assert "40 numbers instead of 64" in forced.stdout
    assert "cannot be quantised" in forced.stderr
    twice = surgery("latent", tmp_path / "o.gguf", "-o", tmp_path / "p.gguf")
    assert (twice.returncode, len(twice.stderr.splitlines())) == (1, 1)
    assert "is a deepseek2 model, and only llama" in twice.stderr
    assert not (tmp_path / "p.gguf").exists()


def test_the_real_model_is_still_itself_with_two_thirds_of_the_cache(embedded: Path, tmp_path: Path) -> None:
    calibration = statistics_of(embedded, Path("python-docs-calibration"), tmp_path, chunks=2, chunk_size=256)
    output = tmp_path / "o.gguf"
    report = convert_to_latent(open_gguf(embedded), output, LatentPlan(cache=2 / 3), calibration)
    assert report.layout.cached_numbers == 256
    options = ContextOptions(n_ctx=256)
    result = evaluate(output, read_text("python-docs"), base=embedded, chunks=2, options=options)
    assert result.kld_mean < 1  # a shared basis of random components is at 8
