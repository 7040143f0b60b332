"""Statistics of each expert, metrics and budgets made of them, against a mixture of experts in numpy."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from native.model import load_model
from pipeline.calibration.calibrate import calibrate
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.inputs.texts import read_text
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import Calibration
from pipeline.operation.layer_groups import check_plan
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.projection import Block
from pipeline.targets import TARGETS
from tests.captured import relative
from tests.commands import call
from tests.reference_llama import LayerTrace, gated, trace_llama
from tests.tiny_architectures import WIDTH, write_mixture

pytestmark = pytest.mark.numerical

TOKENS, EXPERTS, IDLE = 512, 5, 4
ROLES = ("gate", "up", "down")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> GGUFModel:
    """Five experts, to the last of which no token is routed: read-only."""
    return open_gguf(write_mixture(tmp_path_factory.mktemp("mixture") / "m.gguf", EXPERTS, 2, idle=True))


@pytest.fixture(scope="module")
def statistics(mixture: GGUFModel, english: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGERY_CACHE", str(tmp_path_factory.mktemp("statistics")))
        return calibrate(mixture, read_text(str(english)), chunks=1, chunk_size=TOKENS, roles=TARGETS)


@pytest.fixture(scope="module")
def trace(mixture: GGUFModel, english: Path) -> list[LayerTrace]:
    with load_model(str(mixture.path)) as model:
        return trace_llama(mixture, model.tokenize(english.read_text(), special=False)[:TOKENS])


def given(model: GGUFModel, trace: list[LayerTrace]) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Of each expert what its gate, up and down are multiplied with, (tokens, columns)."""
    for layer, seen in enumerate(trace):
        assert seen.chosen is not None
        for expert in range(EXPERTS):
            y = seen.y[(seen.chosen == expert).any(axis=1)]
            gate, up = (model.read(f"blk.{layer}.ffn_{role}_exps.weight")[expert] for role in ("gate", "up"))
            yield layer, expert, {"gate": y, "up": y, "down": gated(y, gate, up)}


def lost(rows: np.ndarray, x: np.ndarray, rank: int) -> float:
    """The least that the square of rows x can lose at this rank."""
    return float(np.sum(np.linalg.svd(rows @ x.T, compute_uv=False)[rank:] ** 2))


def test_each_expert_has_the_moments_of_what_is_routed_to_it(
    mixture: GGUFModel, statistics: Calibration, trace: list[LayerTrace]
) -> None:
    layers, own = AttentionLayers(mixture, statistics, TARGETS), 0
    for number, expert, inputs in given(mixture, trace):
        layer = layers.block(number, Block("experts", expert))
        for role, x in inputs.items():
            assert statistics.routed(layer.projections[role].tensor)[expert] == len(x)
            if len(x) >= x.shape[1]:
                own += 1
                assert relative(layer.moments(role).inputs, x.T @ x / len(x)) < 2e-3
                assert relative(layer.moments(role).mean, x.mean(axis=0)) < 2e-3
    assert own >= 15
    assert not [name for name in statistics.file.tensors if "ffn_product-experts." in name]


def test_under_metric_inputs_every_expert_is_the_reference(
    mixture: GGUFModel, statistics: Calibration, trace: list[LayerTrace], tmp_path: Path
) -> None:
    rank = 8
    plan = Plan("separate", "ffn", rank=rank, metric="inputs", mean="none")
    report = operate(mixture, tmp_path / "o.gguf", plan, calibration=statistics)
    written = open_gguf(tmp_path / "o.gguf")
    for layer, expert, inputs in given(mixture, trace):
        if expert == IDLE:  # what the layer is given on the whole; of down, whose inputs are its own, all alike
            inputs = {"gate": trace[layer].y, "up": trace[layer].y, "down": np.eye(inputs["down"].shape[1])}
        for role, x in inputs.items():
            if len(x) < x.shape[1]:  # too few for moments of its own, see below
                continue
            name = f"blk.{layer}.ffn_{role}_exps.weight"
            before, after = (model.read(name)[expert].astype(np.float64) for model in (mixture, written))
            error = np.linalg.norm((after - before) @ x.T) ** 2
            assert error == pytest.approx(lost(before, x, rank), rel=0.02, abs=1e-4 * np.linalg.norm(before @ x.T) ** 2)
    assert report.notes[0].startswith("no token was routed to experts 4 of layers 0-1:")


def test_directions_that_experts_share_are_those_that_their_inputs_need(
    mixture: GGUFModel, statistics: Calibration, trace: list[LayerTrace], tmp_path: Path
) -> None:
    """As shares of each expert's energy, what is lost is less than without statistics, and no less than by each alone."""
    lost_by: dict[str, float] = {}
    for name, method, metric in (("shared", "shared-experts", "inputs"), ("plain", "shared-experts", "weights")):
        plan = Plan(method, "gate,up", rank=24, metric=metric, mean="none")
        operate(mixture, tmp_path / "o.gguf", plan, calibration=statistics, force=True)
        lost_by[name], lost_by["alone"], written = 0.0, 0.0, open_gguf(tmp_path / "o.gguf")
        for layer, expert, inputs in given(mixture, trace):
            x = inputs["up"]
            if len(x) < WIDTH:
                continue
            before, after = (
                [model.read(f"blk.{layer}.ffn_{role}_exps.weight")[expert] for role in ("gate", "up")]
                for model in (mixture, written)
            )
            scales = [1 / np.linalg.norm(rows @ x.T) for rows in before]
            rows, found = (np.vstack([r * s for r, s in zip(each, scales, strict=True)]) for each in (before, after))
            lost_by[name] += np.linalg.norm((found - rows) @ x.T) ** 2
            lost_by["alone"] += lost(rows, x, 24)
    assert lost_by["alone"] < lost_by["shared"] < 0.9 * lost_by["plain"]


def test_experts_share_with_those_that_are_used_as_much(
    mixture: GGUFModel, statistics: Calibration, trace: list[LayerTrace], tmp_path: Path
) -> None:
    """The fewest that half of the tokens are routed to have a subspace of their own, which loses less than one for all."""
    rank, lost_by = 16, {"shared-experts": 0.0, "shared-experts-by-use": 0.0}
    with pytest.raises(UsageError, match="`method='shared-experts-by-use'`: needs `metric`"):
        Plan("shared-experts-by-use", "gate,up")
    for method in lost_by:
        plan = Plan(method, "gate,up", rank=rank, metric="inputs", mean="none")
        check_plan(mixture, plan)  # as commands do, before there are statistics
        report = operate(mixture, tmp_path / "o.gguf", plan, calibration=statistics, force=True)
        written = open_gguf(tmp_path / "o.gguf")
        for layer, expert, inputs in given(mixture, trace):
            if len(inputs["up"]) >= WIDTH:
                before, after = (stacked(model, layer, [expert]) for model in (mixture, written))
                energy = [np.linalg.norm(rows @ inputs["up"].T) ** 2 for rows in np.split(before, 2)]
                errors = [np.linalg.norm(rows @ inputs["up"].T) ** 2 for rows in np.split(after - before, 2)]
                lost_by[method] += sum(error / whole for error, whole in zip(errors, energy, strict=True))
    assert 0 < lost_by["shared-experts-by-use"] < 0.95 * lost_by["shared-experts"]
    assert written.get("surgery.ranks.gate+up.experts.most-used") == [rank] * 2
    for layer, seen in enumerate(trace):
        assert seen.chosen is not None
        counts = np.bincount(seen.chosen.ravel(), minlength=EXPERTS)
        fullest = [
            max(combinations(range(EXPERTS), n), key=lambda each: counts[list(each)].sum()) for n in (1, 2, 3, 4)
        ]
        most = next(list(each) for each in fullest if 2 * counts[list(each)].sum() >= counts.sum())
        others = [expert for expert in range(EXPERTS) if expert not in most]
        groups = [group for group in report.groups if group.layer == layer]
        assert [group.rows for group in groups] == [len(each) * 192 for each in (most, others)]
        assert [np.linalg.matrix_rank(stacked(written, layer, each), tol=1e-3) for each in (most, others)] == [rank] * 2
    assert groups[0].shown_group == "gate+up of the most used experts together"


def stacked(model: GGUFModel, layer: int, experts: list[int]) -> np.ndarray:
    """gate and up of experts of a layer, (2 * experts * features, width)."""
    return np.vstack(
        [
            model.read(f"blk.{layer}.ffn_{role}_exps.weight")[e].astype(np.float64)
            for e in experts
            for role in ("gate", "up")
        ]
    )


def test_one_budget_is_spread_over_experts_by_what_their_errors_cost(
    mixture: GGUFModel, statistics: Calibration, tmp_path: Path
) -> None:
    assert {"gate.experts", "up.experts", "down.experts", "o"} <= set(statistics.probed)
    assert all(cost > 0 for cost in statistics.sensitivities("up.experts"))
    plan = Plan("shared-gate-up", "all", budget=0.5, metric="attention", mean="none")
    together = operate(mixture, tmp_path / "t.gguf", replace(plan, method="shared-experts"), calibration=statistics)
    assert 0.48 < together.factor_numbers / together.dense_numbers <= 0.5
    report = operate(mixture, tmp_path / "o.gguf", plan, calibration=statistics)
    assert 0.48 < report.factor_numbers / report.dense_numbers <= 0.5
    for group in report.groups:
        if group.expert_ranks:
            assert group.expert_ranks[IDLE] < np.mean(
                group.expert_ranks[:IDLE]
            )  # its errors were measured to cost nothing
    layer = AttentionLayers(mixture, statistics, TARGETS).block(0, Block("experts", 1))
    counts = statistics.routed("blk.0.ffn_up_exps.weight") + 1
    whole = statistics.sensitivity("up.experts", 0)
    assert layer.sensitivity("up") == pytest.approx(whole * counts[1] / counts.sum())


@pytest.mark.usefixtures("own_cache")
def test_where_they_are_too_many_the_layers_moments_are_scaled_to_each_one(
    mixture: GGUFModel, english: Path, trace: list[LayerTrace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.calibration.calibrate.MOST_APART", 0)
    text = read_text(str(english))
    taken = calibrate(mixture, text, chunks=1, chunk_size=TOKENS, roles=TARGETS, sensitivities=False)
    assert not [name for name in taken.file.tensors if name.endswith("second_moment") and "experts1" in name]
    layers = AttentionLayers(mixture, taken, TARGETS)
    for number, expert, inputs in given(mixture, trace):
        layer = layers.block(number, Block("experts", expert))
        whole = trace[number].y.T @ trace[number].y / TOKENS
        squares = {role: np.square(x).mean(axis=0) for role, x in inputs.items() if len(x)}
        if expert == IDLE:
            squares = {"gate": np.diag(whole), "down": np.ones(inputs["down"].shape[1])}
        scale = np.sqrt(squares["gate"] / np.diag(whole))
        assert relative(layer.moments("down").inputs, squares["down"]) < 5e-3
        assert relative(layer.moments("gate").inputs, whole * np.outer(scale, scale)) < 5e-3
    report = operate(mixture, tmp_path / "o.gguf", Plan(targets="ffn", metric="inputs", rank=9), calibration=taken)
    assert any("8 of 10 experts have too few" in note for note in report.notes)
    assert all(0 < group.explained <= 1 for group in report.groups)
    down = [model.read("blk.0.ffn_down_exps.weight")[1] for model in (mixture, open_gguf(tmp_path / "o.gguf"))]
    roots = np.diag(np.sqrt(layers.block(0, Block("experts", 1)).moments("down").inputs))
    error = np.linalg.norm((down[1] - down[0]) @ roots) ** 2
    assert error == pytest.approx(lost(down[0] - down[0].mean(axis=0), roots, 9), rel=1e-3)


@pytest.mark.usefixtures("own_cache")
def test_the_commands_say_how_experts_fared(mixture: GGUFModel, english: Path) -> None:
    chosen = ("--text", english, "--chunks", 1, "--targets", "all", "--no-probes")
    facts = json.loads(call("calibrate", mixture.path, *chosen, "-o", "s.gguf", "--json").stdout)
    assert any("no token was routed to experts 4" in note for note in facts["notes"])
    made = call(
        "operate", mixture.path, "-o", "o.gguf", "--targets", "ffn", "--metric", "inputs", "--calibration", "s.gguf"
    )
    assert made.exit_code == 0, made.output
    assert "no token was routed to experts 4 of layers 0-1" in made.stdout
    assert [line.split()[:5] for line in made.stdout.splitlines()[1:4]] == [
        ["0", role, "of", "5", "experts"] for role in ROLES
    ]  # fmt: skip
