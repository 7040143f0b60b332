"""Layers that share components, on files: which they are, what is written and what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from sklearn.decomposition import PCA

import pipeline.operation.cross_layer
from native.on_disk import on_disk
from pipeline.compare.cell import Cell, effective_plan
from pipeline.compare.grid import Grid
from pipeline.decompose.subspaces import groups_of_alike
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import open_calibration
from pipeline.operation.layer_groups import layer_groups
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.operation.report import OperationReport
from tests.same_weights import assert_alike, assert_same_weights
from tests.tiny_model import TinyModel

pytestmark = pytest.mark.numerical

FOUR = TinyModel(layers=4)


@pytest.fixture
def four(make_tiny: Callable[[TinyModel], Path]) -> Path:
    return make_tiny(FOUR)


def cross(groups: str, **choices: Any) -> Plan:
    return Plan(method="cross-layer", group_layers=groups, **choices)


def perform(source: Path, output: Path, plan: Plan, **options: Any) -> tuple[GGUFModel, OperationReport]:
    report = operate(open_gguf(source), output, plan, **options)
    return open_gguf(output), report


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", [(0,), (1,), (2,), (3,)]),
        ("2", [(0, 1), (2, 3)]),
        ("3", [(0, 1, 2), (3,)]),
        ("all", [(0, 1, 2, 3)]),
        ("stride:2", [(0, 2), (1, 3)]),
        ("stride:3", [(0, 3), (1,), (2,)]),
        ("0-2/3", [(0, 1, 2), (3,)]),
        ("1,3/2", [(0,), (1, 3), (2,)]),
        ("1-2", [(0,), (1, 2), (3,)]),
    ],
)
def test_groups_of_layers(four: Path, text: str, expected: list[tuple[int, ...]]) -> None:
    assert layer_groups(AttentionLayers(open_gguf(four)), [0, 1, 2, 3], cross(text)) == expected


def test_neighbours_are_those_among_the_chosen_layers(four: Path) -> None:
    assert layer_groups(AttentionLayers(open_gguf(four)), [0, 2, 3], cross("2")) == [(0, 2), (3,)]


@pytest.mark.parametrize("text", ["0", "", "two", "0;1", "stride:", "stride:0", "similar:x", "-1", "nearest:2"])
def test_what_is_no_grouping_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"`group_layers=.*expected N for N neighbours"):
        cross(text)


def test_a_grouping_belongs_to_the_method() -> None:
    with pytest.raises(UsageError, match="`method='cross-layer'`: needs `group_layers`"):
        Plan(method="cross-layer")
    with pytest.raises(UsageError, match="`method='shared-kv'` shares nothing between layers"):
        Plan(group_layers="2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "4 layers are operated on"),
        ("stride:5", "4 layers are operated on"),
        ("0-1/1-2", "layer 1 is in two groups"),
        ("0-1/7", "layer 7 has no q, k and v"),
        ("3-1", "neither a number nor a range"),
    ],
)
def test_a_grouping_that_the_model_cannot_follow_is_refused(four: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"`group_layers=.*{message}"):
        operate(open_gguf(four), Path("out.gguf"), cross(text))
    assert not Path("out.gguf").exists()


def test_a_listed_layer_must_be_operated_on(four: Path) -> None:
    with pytest.raises(UsageError, match="layer 2 is not among `layers`"):
        operate(open_gguf(four), Path("out.gguf"), cross("0/2", layers="0,1"))


@pytest.mark.parametrize("metric", ["weights", "attention"])
def test_groups_of_one_layer_are_shared_kv(tiny: Path, taken: Path, metric: str) -> None:
    calibration = open_calibration(taken) if metric != "weights" else None
    choices: dict[str, Any] = {"metric": metric, "threshold": 0.6, "outtype": "f16"}
    one, _ = perform(tiny, Path("one.gguf"), Plan(**choices), calibration=calibration)
    other, _ = perform(tiny, Path("other.gguf"), cross("1", **choices), calibration=calibration)
    assert_same_weights(one, other)


def test_what_is_written_is_scikit_learns_pca_of_the_stack(four: Path) -> None:
    before = open_gguf(four)
    names = [f"blk.{layer}.attn_{role}.weight" for layer in (1, 3) for role in "kv"]
    stack = np.vstack([before.read(name) for name in names]).astype(np.float64)
    pca = PCA(0.8, svd_solver="full")
    expected = pca.inverse_transform(pca.fit_transform(stack))
    after, report = perform(four, Path("out.gguf"), cross("1,3/2", threshold=0.8, layers="1-3"))
    assert np.allclose(np.vstack([after.read(name) for name in names]), expected, atol=1e-5)
    result = next(group for group in report.groups if group.group == "kv")
    assert (result.layer, result.layers, result.rows, result.rank) == (1, (1, 3), 128, pca.n_components_)
    assert result.factor_numbers == result.rank * (128 + 64) + 64
    assert result.dense_numbers == 128 * 64
    assert result.explained == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-5)
    k = np.r_[0:32, 64:96]
    error = np.linalg.norm(expected[k] - stack[k]) / np.linalg.norm(stack[k])
    assert result.relative_error["k"] == pytest.approx(error, rel=1e-4)
    for name in before.tensors:
        if name not in names and "attn_q" not in name and not name.startswith("blk.2.attn_"):
            assert np.array_equal(before.read_raw(name), after.read_raw(name)), name


def test_provenance_says_which_layers_share(four: Path) -> None:
    after, report = perform(four, Path("out.gguf"), cross("stride:2", threshold=0.5))
    assert after.get("surgery.method") == "cross-layer"
    assert after.get("surgery.group_layers") == "0,2/1,3"
    ranks = {group.layers: group.rank for group in report.groups if group.group == "kv"}
    assert after.get("surgery.ranks.kv") == [ranks[0, 2], ranks[1, 3]] * 2
    q = {group.layer: group.rank for group in report.groups if group.group == "q"}
    assert after.get("surgery.ranks.q") == [q[layer] for layer in range(4)]
    again, _ = perform(four, Path("again.gguf"), cross(after.get("surgery.group_layers"), threshold=0.5))
    assert_same_weights(after, again)


def test_equal_layers_need_the_rank_of_one(tiny: Path, tmp_path: Path) -> None:
    """Layer 1 is made a copy of layer 0: together they need the rank that one needs alone, and lose as much."""
    path = tmp_path / "twins.gguf"
    path.write_bytes(tiny.read_bytes())
    model = open_gguf(path)
    with path.open("r+b") as file:
        for role in "kv":
            file.seek(model.tensors[f"blk.1.attn_{role}.weight"].offset)
            file.write(model.read_raw(f"blk.0.attn_{role}.weight").tobytes())
    alone, one = perform(path, tmp_path / "alone.gguf", Plan(targets="kv", threshold=0.7))
    shared, both = perform(path, tmp_path / "shared.gguf", cross("all", targets="kv", threshold=0.7))
    assert [group.rank for group in one.groups] == [group.rank for group in both.groups] * 2
    for name in alone.tensors:
        assert np.allclose(alone.read(name), shared.read(name), atol=1e-5)
    assert both.factor_numbers < one.factor_numbers


@pytest.mark.parametrize("metric", ["inputs", "attention"])
def test_layers_share_under_metrics_of_their_own(tiny: Path, taken: Path, metric: str) -> None:
    calibration = open_calibration(taken)
    choices: dict[str, Any] = {"targets": "kv", "metric": metric, "mean": "none"}
    _, shared = perform(tiny, Path("a.gguf"), cross("all", threshold=0.9, **choices), calibration=calibration)
    assert shared.groups[0].explained >= 0.9
    _, spread = perform(
        tiny, Path("b.gguf"), cross("all", threshold=None, budget=0.5, **choices), calibration=calibration
    )
    assert 0.48 < spread.factor_numbers / spread.dense_numbers <= 0.5


def test_large_groups_leave_memory(tiny: Path, taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = open_calibration(taken)
    plan = cross("all", targets="kv", metric="inputs", threshold=None, rank=20)
    kept, _ = perform(tiny, Path("kept.gguf"), plan, calibration=calibration)
    moved: list[int] = []

    def counted(array: np.ndarray) -> np.ndarray:
        moved.append(array.nbytes)
        return on_disk(array)

    monkeypatch.setattr(pipeline.operation.cross_layer, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(pipeline.operation.cross_layer, "on_disk", counted)
    other, _ = perform(tiny, Path("other.gguf"), plan, calibration=calibration)
    assert len(moved) == 4
    assert_same_weights(kept, other)


@pytest.mark.parametrize("targets", ["qkv", "kv", "k"])
def test_fused_tensors_of_layers_that_share(make_tiny: Callable[[TinyModel], Path], targets: str) -> None:
    model = replace(FOUR, type=gguf.GGMLQuantizationType.Q8_0)
    plan = cross("stride:2", threshold=0.7, targets=targets, outtype="keep")
    one, _ = perform(make_tiny(replace(model, architecture="phi3", fused=True)), Path("f.gguf"), plan)
    two, _ = perform(make_tiny(model), Path("s.gguf"), plan)
    for layer in range(4):
        stacked = np.vstack([two.read(f"blk.{layer}.attn_{role}.weight") for role in "qkv"])
        assert_alike(
            one.tensors[f"blk.{layer}.attn_qkv.weight"].type, one.read(f"blk.{layer}.attn_qkv.weight"), stacked
        )


def test_similar_layers_are_found(four: Path, tmp_path: Path) -> None:
    """Layers 0 and 2, 1 and 3 are made to read the same subspaces, with other coefficients."""
    path, rng = tmp_path / "alike.gguf", np.random.default_rng(0)
    path.write_bytes(four.read_bytes())
    model = open_gguf(path)
    read = [rng.standard_normal((20, 64)), rng.standard_normal((20, 64))]
    with path.open("r+b") as file:
        for layer in range(4):
            for role in "kv":
                info = model.tensors[f"blk.{layer}.attn_{role}.weight"]
                file.seek(info.offset)
                file.write((rng.standard_normal((32, 20)) @ read[layer % 2]).astype(np.float32).tobytes())
    after, _ = perform(path, tmp_path / "out.gguf", cross("similar:2", targets="kv", threshold=0.9, mean="none"))
    assert after.get("surgery.group_layers") == "0,2/1,3"


def test_the_most_similar_are_joined_up_to_a_size() -> None:
    similarity = np.eye(5)
    for a, b, value in ((0, 3, 0.9), (1, 4, 0.8), (0, 2, 0.7), (3, 2, 0.6), (0, 1, 0.5)):
        similarity[a, b] = similarity[b, a] = value
    assert groups_of_alike(similarity, 2) == [(0, 3), (1, 4), (2,)]
    assert groups_of_alike(similarity, 3) == [(0, 2, 3), (1, 4)]
    assert groups_of_alike(similarity, 1) == [(0,), (1,), (2,), (3,), (4,)]
    assert groups_of_alike(np.ones((4, 4)), 2) == [(0, 1), (2, 3)]


def test_a_grid_crosses_groupings_with_the_method_that_has_them() -> None:
    grid = Grid(methods=("shared-kv", "cross-layer"), group_layers=("2", "all"), thresholds=(0.5,))
    assert [(plan.method, plan.group_layers) for plan in grid.plans() if isinstance(plan, Plan)] == [
        ("shared-kv", None),
        ("cross-layer", "2"),
        ("cross-layer", "all"),
    ]
    assert "shared by all" in Cell(cross("all")).label
    assert effective_plan(cross("all", targets="q")) == Plan(targets="q")
    with pytest.raises(UsageError, match="`group_layers`: none of the `methods` uses it"):
        Grid(methods=("separate",), group_layers=("2",), thresholds=(0.5,)).plans()
