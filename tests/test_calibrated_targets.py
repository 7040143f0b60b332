"""Statistics, metrics and budgets of o, gate, up and down, against a Llama in numpy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from native.model import load_model
from pipeline.calibration.calibrate import calibrate
from pipeline.calibration.metrics import layer_metric
from pipeline.calibration.mixture import mix
from pipeline.calibration.output_blocks import output_blocks
from pipeline.decompose.principal_components import principal_components
from pipeline.decompose.weighted import weigh_rows
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import read_text
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import Calibration, open_calibration
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.targets import TARGETS
from tests.reference_llama import LayerTrace, trace_llama
from tests.tiny_model import TinyModel, tensors_of, write_tiny_model

pytestmark = pytest.mark.numerical

TOKENS = 256


@pytest.fixture(scope="module")
def everything(tiny: Path, english: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Statistics of the tiny model of all that its layers read, with what errors cost: read-only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGERY_CACHE", str(tmp_path_factory.mktemp("statistics")))
        return calibrate(open_gguf(tiny), read_text(str(english)), chunks=1, chunk_size=TOKENS, roles=TARGETS)


@pytest.fixture(scope="module")
def trace(tiny: Path, english: Path) -> list[LayerTrace]:
    with load_model(str(tiny)) as model:
        return trace_llama(open_gguf(tiny), model.tokenize(english.read_text(), special=False)[:TOKENS])


def product(model_path: Path, trace: LayerTrace, layer: int) -> np.ndarray:
    """What down reads, (n, feed forward)."""
    gate, up = (trace.y @ open_gguf(model_path).read(f"blk.{layer}.ffn_{role}.weight").T for role in ("gate", "up"))
    result: np.ndarray = gate / (1 + np.exp(-gate)) * up
    return result


@pytest.mark.parametrize("mean", ["keep", "none"])
def test_under_metric_inputs_every_projection_is_the_reference(
    tiny: Path, everything: Calibration, trace: list[LayerTrace], tmp_path: Path, mean: str
) -> None:
    source = open_gguf(tiny)
    plan = Plan("separate", "all", rank=12, metric="inputs", mean=mean)
    operate(source, tmp_path / "o.gguf", plan, calibration=everything)
    written = open_gguf(tmp_path / "o.gguf")
    for layer, seen in enumerate(trace):
        inputs = {"o": ("attn_output", seen.mixed), "down": ("ffn_down", product(tiny, seen, layer))}
        inputs |= {role: (f"attn_{role}", seen.x) for role in "qkv"} | {r: (f"ffn_{r}", seen.y) for r in ("gate", "up")}
        assert inputs.keys() == set(TARGETS)
        for name, x in inputs.values():
            before, after = (model.read(f"blk.{layer}.{name}.weight").astype(np.float64) for model in (source, written))
            centred = before - before.mean(axis=0) if mean == "keep" else before
            lost = np.linalg.svd(centred @ x.T, compute_uv=False)[12:]
            assert np.linalg.norm((after - before) @ x.T) ** 2 == pytest.approx(np.sum(lost**2), rel=0.02), name


def test_gate_and_up_are_read_by_down_as_their_product(
    tiny: Path, everything: Calibration, trace: list[LayerTrace]
) -> None:
    layer = AttentionLayers(open_gguf(tiny), everything, TARGETS)[1]
    read = np.square(layer.rows("down")).sum(axis=0) * np.square(product(tiny, trace[1], 1)).mean(axis=0)
    for role in ("gate", "up"):
        (block,) = output_blocks(layer, role)
        made = np.square(trace[1].y @ layer.rows(role).T).mean(axis=0)
        np.testing.assert_allclose(block, read / made, rtol=0.05)


@pytest.mark.parametrize("method", ["separate", "shared-gate-up", "cross-layer", "random"])
def test_one_budget_is_spread_by_what_errors_cost(
    tiny: Path, everything: Calibration, tmp_path: Path, method: str
) -> None:
    assert set(everything.probed) == set(TARGETS)
    assert all(cost > 0 for role in TARGETS for cost in everything.sensitivities(role))
    groups = "all" if method == "cross-layer" else None
    plan = Plan(method, "all", budget=0.5, metric="attention", mean="none", group_layers=groups)
    report = operate(open_gguf(tiny), tmp_path / "o.gguf", plan, calibration=everything)
    assert 0.48 < report.factor_numbers / report.dense_numbers <= 0.5
    assert len({group.rank for group in report.groups}) > 1
    assert all(0 < group.explained <= 1 for group in report.groups)
    assert open_gguf(tmp_path / "o.gguf").get("surgery.targets") == "all"


@pytest.mark.usefixtures("own_cache")
def test_the_unit_of_a_product_makes_no_difference(english: Path, tmp_path: Path) -> None:
    """up with features of any size, which down takes back: the same function, and the same one after surgery."""
    scale = np.random.default_rng(0).exponential(1, 96).astype(np.float32) + np.float32(0.1)
    tensors = tensors_of(TinyModel())
    scaled = dict(tensors)
    for layer in range(2):
        scaled[f"blk.{layer}.ffn_up.weight"] = tensors[f"blk.{layer}.ffn_up.weight"] * scale[:, None]
        scaled[f"blk.{layer}.ffn_down.weight"] = tensors[f"blk.{layer}.ffn_down.weight"] / scale
    rebuilt = []
    for number, each in enumerate((tensors, scaled)):
        model = open_gguf(write_tiny_model(tmp_path / f"{number}.gguf", tensors=each))
        text = read_text(str(english))
        statistics = calibrate(model, text, chunks=1, chunk_size=64, roles=TARGETS, sensitivities=False)
        layer_ = AttentionLayers(model, statistics, TARGETS)[1]
        metric = layer_metric("attention", layer_, ("up",))
        assert metric is not None
        weighted = weigh_rows(layer_.rows("up"), metric, "none")
        rebuilt.append(weighted.restore(*principal_components(weighted.rows, "none").factors(20)))
    np.testing.assert_allclose(rebuilt[1] / scale[:, None], rebuilt[0], atol=2e-3)


def test_statistics_of_q_k_and_v_alone_are_not_enough(
    tiny: Path, english: Path, everything: Calibration, taken: Path, tmp_path: Path
) -> None:
    attention = open_calibration(taken)
    assert attention.origin.targets == "qkv"
    assert {name.split(".")[2] for name in attention.file.tensors if name.endswith(".second_moment")} == {"attn_input"}
    plan = Plan(targets="kv+o+up", metric="inputs", rank=4)
    with pytest.raises(UsageError, match="says nothing of o, up; make it with surgery calibrate and `targets=all`"):
        operate(open_gguf(tiny), tmp_path / "o.gguf", plan, calibration=attention)
    with pytest.raises(UsageError, match=r"cannot be mixed, their (chunk_size|targets) differs"):
        mix([attention, everything])
    operate(open_gguf(tiny), tmp_path / "o.gguf", Plan(metric="attention", rank=4), calibration=everything)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("shape", [TinyModel(architecture="phi3", fused=True), TinyModel(feed_forward=32)])
def test_fused_and_narrow_feed_forward_blocks_are_calibrated(
    make_tiny: Callable[[TinyModel], Path], english: Path, tmp_path: Path, shape: TinyModel
) -> None:
    model = open_gguf(make_tiny(shape))
    statistics = calibrate(model, read_text(str(english)), chunks=1, chunk_size=64, roles=TARGETS, sensitivities=False)
    plan = Plan("shared-gate-up", "ffn", threshold=0.9, metric="inputs")
    report = operate(model, tmp_path / "o.gguf", plan, calibration=statistics)
    assert [group.group for group in report.groups] == ["gate+up", "down"] * 2
    assert all(group.explained >= 0.9 for group in report.groups)
