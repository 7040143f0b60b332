"""Probes: an error that is added while llama.cpp runs does what the same error in the file does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from native.errors import NativeError
from native.isolated import isolated
from native.model import ContextOptions, load_model, open_context
from native.probe import WeightError, probe_errors
from native.scoring import score_tokens
from pipeline.calibration.calibrate import calibrate
from pipeline.calibration.metrics import attention_metric, layer_metric
from pipeline.calibration.output_blocks import output_blocks
from pipeline.calibration.sensitivity import steadied, weakest_error
from pipeline.errors import UsageError
from pipeline.files.journal import add_record, read_journal
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.inputs.texts import read_text
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import Calibration
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.progress import silent
from tests.tiny_architectures import write_mixture
from tests.tiny_model import TinyModel, tensors_of, with_number, write_tiny_model

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune is in want. " * 3
OPTIONS = ContextOptions(n_ctx=64, n_batch=64)


def probe(path: Path, *errors: WeightError) -> list[float]:
    probes = isolated(probe_errors, str(path), TEXT, 1, OPTIONS)
    next(probes)
    return [probes.send(error) for error in errors]


def logits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with load_model(str(path)) as model, open_context(model, OPTIONS) as context:
        tokens = model.tokenize(TEXT, special=False)[64:128]
        context.decode(tokens, np.arange(64), np.zeros(64, int), np.arange(64) < 63)
        return context.logits(63).copy(), tokens


def with_error(path: Path, error: WeightError) -> Path:
    """A copy of an F32 model with the error in its file."""
    changed = path.with_name("changed.gguf")
    data, info = bytearray(path.read_bytes()), open_gguf(path).tensors[error.tensor]
    values = open_gguf(path).read(error.tensor)
    values[list(error.experts) if error.experts else ...] += error.error
    data[info.offset : info.offset + info.nbytes] = values.tobytes()
    changed.write_bytes(data)
    return changed


@pytest.mark.parametrize(
    ("shape", "tensor", "start"),
    [
        (TinyModel(), "blk.0.attn_k.weight", 0),
        (TinyModel(), "blk.1.attn_v.weight", 0),
        (TinyModel(fused=True, architecture="phi3"), "blk.0.attn_qkv.weight", 64),
        (TinyModel(fused=True, architecture="phi3"), "blk.0.ffn_up.weight", 96),
        (TinyModel(), "blk.1.attn_output.weight", 0),
    ],
)
def test_a_probe_costs_what_the_error_in_the_file_costs(
    make_tiny: Callable[[TinyModel], Path], shape: TinyModel, tensor: str, start: int
) -> None:
    path = make_tiny(shape)
    noise = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    whole = np.zeros(open_gguf(path).tensors[tensor].shape, np.float32)
    whole[start : start + 32] = noise
    error = WeightError(tensor, whole * np.float32(0.05))
    (right, tokens), (changed, _) = logits(path), logits(with_error(path, error))
    expected = score_tokens(changed, tokens[1:], right).kld.mean()
    costs = probe(path, error, WeightError(tensor, whole * np.float32(0.1)), error)
    assert costs[0] == pytest.approx(expected, rel=0.05)
    assert costs[1] == pytest.approx(4 * costs[0], rel=0.2)  # damage grows with the square
    assert costs[2] == pytest.approx(costs[0], rel=1e-3)


@pytest.mark.parametrize("role", ["gate", "down"])
def test_a_probe_of_experts_costs_what_their_errors_in_the_file_cost(tmp_path: Path, role: str) -> None:
    path = write_mixture(tmp_path / "m.gguf", 4, 2)
    tensor, experts = f"blk.1.ffn_{role}_exps.weight", (3, 1)
    shape = (len(experts), *open_gguf(path).tensors[tensor].shape[1:])
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    error = WeightError(tensor, noise * np.float32(0.05), experts)
    (right, tokens), (changed, _) = logits(path), logits(with_error(path, error))
    expected = score_tokens(changed, tokens[1:], right).kld.mean()
    assert probe(path, error) == [pytest.approx(expected, rel=0.05)]


def test_an_unknown_weight_is_an_error(tiny: Path) -> None:
    with pytest.raises(NativeError, match=r"no product with blk\.9"):
        probe(tiny, WeightError("blk.9.attn_k.weight", np.zeros((1, 64), np.float32)))


def test_a_broken_model_is_an_error_not_a_cost(tiny: Path, tmp_path: Path) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", "token_embd.weight", np.nan)  # of a token that does not occur
    with pytest.raises(NativeError, match=r"broken\.gguf: an error of blk\.0\.attn_k\.weight costs nan nats"):
        probe(broken, WeightError("blk.0.attn_k.weight", np.zeros((32, 64), np.float32)))


@pytest.fixture
def model(tiny: Path) -> GGUFModel:
    return open_gguf(tiny)


def test_k_and_v_are_balanced_by_what_their_errors_were_measured_to_cost(
    model: GGUFModel, english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    heard: list[float] = []
    calibration = calibrate(
        model, read_text(str(english)), chunks=2, probing=lambda done, total, note: heard.append(total - done)
    )
    assert heard == [6, 5, 4, 3, 2, 1, 0]
    layer = AttentionLayers(model, calibration)[1]
    metric = layer_metric("attention", layer, "kv")
    assert metric is not None
    k, v = (layer.rows(role) for role in "kv")
    nothing = np.zeros_like(k)
    for role, rows in (("k", np.vstack([k, nothing])), ("v", np.vstack([nothing, v]))):
        nats = calibration.sensitivity(role, 1)
        assert nats > 0
        # an error of all that a projection is counts the nats that it was measured to cost
        assert metric.error(rows) == pytest.approx(nats, rel=1e-2)
        error = weakest_error(layer, role)
        assert attention_metric(layer, role).error(error) == pytest.approx(1, rel=1e-2)
    again = calibrate(model, read_text(str(english)), chunks=2)
    assert again.sensitivity("v", 1) == calibration.sensitivity("v", 1)


def test_probing_goes_on_where_it_was_interrupted(
    model: GGUFModel, english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, made = read_text(str(english)), []

    def stop(done: float, total: float, note: str) -> None:
        made.append(note)
        if done == 3 and note == "" and len(made) < 5:
            raise KeyboardInterrupt

    def take(folder: str) -> Calibration:
        monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / folder))
        return calibrate(model, text, chunks=1, chunk_size=256, probing=stop if folder == "broken" else silent)

    whole = take("whole")
    with pytest.raises(KeyboardInterrupt):
        take("broken")
    (journal,) = (tmp_path / "broken").glob("*.probes.jsonl")
    kept = list(read_journal(journal))
    assert {(each["kind"], each["layer"]) for each in kept} == {("q", 0), ("k", 0), ("v", 0)}
    # a probe that is known is not made again: what it cost is believed
    for each in kept:
        add_record(changed := journal.with_suffix(".changed"), each | {"nats": 2 * each["nats"]})
    changed.rename(journal)
    resumed = take("broken")
    assert "going on" in made
    assert not journal.exists()
    for role in "qkv":
        first, second = zip(whole.sensitivities(role), resumed.sensitivities(role), strict=True)
        assert first[1] / first[0] == pytest.approx(2**0.75, rel=1e-3)  # of two layers, drawn halfway to their mean
        assert second[1] / second[0] == pytest.approx(2**0.25, rel=1e-3)


def test_what_errors_cost_is_drawn_halfway_to_the_geometric_mean() -> None:
    costs = np.array([0.5, 2.0, 32.0])
    expected = np.exp((np.log(costs) + np.log(stats.gmean(costs))) / 2)
    assert steadied([0.5, 0.0, 2.0, 32.0]) == pytest.approx([expected[0], 0, *expected[1:]])
    assert steadied([0.0, 0.0]) == [0, 0]


def test_only_what_is_asked_for_is_probed(
    model: GGUFModel, english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    totals: list[float] = []

    def take(roles: str) -> Calibration:
        return calibrate(
            model, read_text(str(english)),
            chunks=1, chunk_size=256, roles=roles, probing=lambda done, total, note: totals.append(total),
        )  # fmt: skip

    first = take("kv")
    assert set(first.probed) == {"k", "v"}
    assert set(totals) == {4}
    totals.clear()
    both = take("qkv")
    assert set(totals) == {2}
    assert set(both.probed) == {"q", "k", "v"}
    assert both.sensitivities("v") == first.sensitivities("v")
    assert both.path == first.path
    with pytest.raises(UsageError, match="does not say what errors of q cost"):
        operate(model, tmp_path / "out.gguf", Plan(metric="attention", threshold=0.5), calibration=first)


@pytest.mark.parametrize("method", ["shared-kv", "separate"])
@pytest.mark.parametrize("zero", ["kv", "q", "v"])
def test_projections_of_zeros_stay_zeros(tmp_path: Path, english: Path, zero: str, method: str) -> None:
    tensors = tensors_of(TinyModel())
    for role in zero:
        tensors[f"blk.1.attn_{role}.weight"] *= 0
    path = write_tiny_model(tmp_path / "zeros.gguf", TinyModel(), tensors=tensors)
    model = open_gguf(path)
    calibration = calibrate(model, read_text(str(english)), chunks=1, chunk_size=256)
    plan = Plan(method=method, metric="attention", threshold=0.5)
    report = operate(model, tmp_path / "out.gguf", plan, calibration=calibration)
    assert all(0 <= group.explained <= 1 for group in report.groups)
    operated = open_gguf(tmp_path / "out.gguf")
    for role in zero if method == "separate" or zero != "v" else "":  # else v shares the mean of k and v
        assert not operated.read(f"blk.1.attn_{role}.weight").any()
    assert operated.read("blk.0.attn_k.weight").any()


def test_a_norm_takes_the_scale_of_q_and_k_from_the_metric(tmp_path: Path, english: Path) -> None:
    """With q and k normalised a head, a head of k that is ten times as large computes the same: it counts the same."""
    blocks = {}
    for name, scale in (("plain", 1.0), ("larger", 10.0)):
        tensors = tensors_of(TinyModel("qwen3"))
        for layer in range(2):
            tensors[f"blk.{layer}.attn_k.weight"][:16] *= np.float32(scale)
            for role in "qk":
                tensors[f"blk.{layer}.attn_{role}_norm.weight"] = np.linspace(0.5, 2, 16, dtype=np.float32)
        path = write_tiny_model(tmp_path / f"{name}.gguf", TinyModel("qwen3"), tensors=tensors)
        model = open_gguf(path)
        calibration = calibrate(model, read_text(str(english)), chunks=1, chunk_size=256, sensitivities=False)
        first = AttentionLayers(model, calibration)[0]
        blocks[name] = output_blocks(first, "k"), output_blocks(first, "q")
    for mine, other, shrunk in zip(blocks["larger"][0], blocks["plain"][0], (100, 1), strict=True):
        np.testing.assert_allclose(mine * shrunk, other, rtol=1e-2, atol=1e-3 * np.abs(other).max())
    for mine, other in zip(blocks["larger"][1], blocks["plain"][1], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-2, atol=1e-3 * np.abs(other).max())
