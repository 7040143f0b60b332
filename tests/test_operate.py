"""The operation on files: what changes is what the reference says, and nothing else changes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from sklearn.decomposition import PCA

from pipeline import layers
from pipeline.attention import read_projection
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.operation.kind import LOW_RANK
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.operation.report import OperationReport
from tests.same_weights import assert_alike, assert_same_weights
from tests.tiny_model import TinyModel, tensors_of, with_number, write_tiny_model

pytestmark = pytest.mark.numerical


def pca(rows: np.ndarray, threshold: float) -> np.ndarray:
    components = PCA(threshold, svd_solver="full")
    return components.inverse_transform(components.fit_transform(rows.astype(np.float64)))


def perform(source: Path, output: Path, plan: Plan) -> tuple[GGUFModel, OperationReport]:
    report = operate(open_gguf(source), output, plan)
    return open_gguf(output), report


def assert_others_untouched(before: GGUFModel, after: GGUFModel, changed: set[str]) -> None:
    assert list(before.tensors) == list(after.tensors)
    for name, info in before.tensors.items():
        if name not in changed:
            assert after.tensors[name].type == info.type
            assert np.array_equal(before.read_raw(name), after.read_raw(name)), name
    kept = {key: entry for key, entry in after.metadata.items() if not key.startswith("surgery.")}
    assert kept == before.metadata


def test_shared_kv_on_the_real_model_is_the_reference(embedded: Path, tmp_path: Path) -> None:
    layers = (0, 15, 29)
    plan = Plan(threshold=0.9, layers="0,15,29", outtype="f32")
    after, report = perform(embedded, tmp_path / "o.gguf", plan)
    before = open_gguf(embedded)
    for layer in layers:
        names = {role: f"blk.{layer}.attn_{role}.weight" for role in "qkv"}
        source = {role: before.read(name) for role, name in names.items()}
        expected_q = pca(source["q"], 0.9)
        expected_kv = pca(np.vstack([source["k"], source["v"]]), 0.9)
        expected = {"q": expected_q, "k": expected_kv[:192], "v": expected_kv[192:]}
        for role, name in names.items():
            assert np.linalg.norm(after.read(name) - expected[role]) < 5e-5 * np.linalg.norm(expected[role])
            result = next(g for g in report.groups if g.layer == layer and role in g.group)
            error = np.linalg.norm(expected[role] - source[role]) / np.linalg.norm(source[role])
            assert result.relative_error[role] == pytest.approx(error, rel=1e-4)
    assert_others_untouched(before, after, {f"blk.{layer}.attn_{role}.weight" for layer in layers for role in "qkv"})


@pytest.mark.parametrize("method", ["separate", "shared-kv", "random"])
def test_threshold_one_leaves_every_byte_alone(embedded: Path, tmp_path: Path, method: str) -> None:
    _, report = perform(embedded, tmp_path / "o.gguf", Plan(method=method, threshold=1))
    assert (tmp_path / "o.gguf").read_bytes() == embedded.read_bytes()
    assert report.factor_numbers == report.dense_numbers
    assert all(group.explained == 1 and not any(group.relative_error.values()) for group in report.groups)


@pytest.mark.parametrize("mean", ["keep", "none"])
def test_a_budget_leaves_a_group_whole_where_factors_would_cost_more(embedded: Path, tmp_path: Path, mean: str) -> None:
    plan = Plan(method="separate", targets="q", mean=mean, budget=0.9, layers="0-3")
    after, report = perform(embedded, tmp_path / "o.gguf", plan)
    before = open_gguf(embedded)
    whole = {group.layer for group in report.groups if group.rank == 576}
    assert 0 < len(whole) < 4
    assert_others_untouched(before, after, {f"blk.{layer}.attn_q.weight" for layer in {0, 1, 2, 3} - whole})
    for group in report.groups:
        if group.layer in whole:
            assert (group.explained, group.relative_error, group.factor_numbers) == (1, {"q": 0}, group.dense_numbers)
        else:
            assert group.rank < 288  # from there on two factors take more numbers than the matrix
    assert report.factor_numbers <= 0.9 * report.dense_numbers
    _, report = perform(embedded, tmp_path / "d.gguf", replace(plan, mean="drop"))
    assert max(group.rank for group in report.groups) < 576


def test_dropping_the_mean_loses_it_even_at_threshold_one(tiny: Path, tmp_path: Path) -> None:
    after, _ = perform(tiny, tmp_path / "o.gguf", Plan(threshold=1, mean="drop", targets="q"))
    weights = tensors_of(TinyModel())["blk.0.attn_q.weight"]
    assert np.allclose(after.read("blk.0.attn_q.weight"), weights - weights.mean(axis=0), atol=1e-5)


def test_the_published_script_changed_q_alone(tiny: Path, tmp_path: Path) -> None:
    plan = Plan(method="separate", targets="q", mean="drop", threshold=0.5)
    after, report = perform(tiny, tmp_path / "o.gguf", plan)
    for layer in (0, 1):
        weights = tensors_of(TinyModel())[f"blk.{layer}.attn_q.weight"]
        expected = pca(weights, 0.5) - weights.mean(axis=0)
        assert np.allclose(after.read(f"blk.{layer}.attn_q.weight"), expected, atol=1e-5)
    assert {group.group for group in report.groups} == {"q"}
    assert_others_untouched(open_gguf(tiny), after, {"blk.0.attn_q.weight", "blk.1.attn_q.weight"})


def test_targets_are_replaced_from_a_basis_fitted_on_the_whole_group(tiny: Path, tmp_path: Path) -> None:
    both, _ = perform(tiny, tmp_path / "both.gguf", Plan(targets="kv", threshold=0.5))
    only_v, report = perform(tiny, tmp_path / "v.gguf", Plan(targets="v", threshold=0.5))
    assert_same_weights(only_v, both, ["blk.0.attn_v.weight"])
    assert_others_untouched(open_gguf(tiny), only_v, {"blk.0.attn_v.weight", "blk.1.attn_v.weight"})
    group = report.groups[0]
    assert (group.group, group.rows, list(group.relative_error)) == ("kv", 64, ["v"])
    assert group.factor_numbers == group.rank * (32 + 64) + 64
    assert group.dense_numbers == 32 * 64


def test_permuted_rows_give_permuted_results(tmp_path: Path) -> None:
    """GGUF permutes the rows of q and k for RoPE; so surgery on the GGUF is surgery on the checkpoint."""
    model = write_tiny_model(tmp_path / "m.gguf")
    permuted = tmp_path / "p.gguf"
    permuted.write_bytes(model.read_bytes())
    opened = open_gguf(permuted)
    orders = {}
    with permuted.open("r+b") as file:
        for role in "qk":
            info = opened.tensors[f"blk.0.attn_{role}.weight"]
            orders[role] = np.random.default_rng(3).permutation(info.shape[0])
            file.seek(info.offset)
            file.write(opened.read(info.name)[orders[role]].tobytes())
    plain, _ = perform(model, tmp_path / "mo.gguf", Plan(threshold=0.6))
    other, _ = perform(permuted, tmp_path / "po.gguf", Plan(threshold=0.6))
    for role, order in orders.items():
        name = f"blk.0.attn_{role}.weight"
        assert np.allclose(other.read(name), plain.read(name)[order], atol=1e-5)
    assert np.allclose(other.read("blk.0.attn_v.weight"), plain.read("blk.0.attn_v.weight"), atol=1e-5)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_a_fused_tensor_is_operated_on_in_place(
    make_tiny: Callable[[TinyModel], Path], tmp_path: Path, kind: str
) -> None:
    model = TinyModel(value_length=8, type=gguf.GGMLQuantizationType[kind])
    fused = make_tiny(replace(model, architecture="phi3", fused=True))
    separate = make_tiny(model)
    plan = Plan(targets="kv", threshold=0.7, outtype="keep")
    one, _ = perform(fused, tmp_path / "f.gguf", plan)
    two, _ = perform(separate, tmp_path / "s.gguf", plan)
    stacked = np.vstack([two.read(f"blk.1.attn_{role}.weight") for role in "qkv"])
    assert_alike(one.tensors["blk.1.attn_qkv.weight"].type, one.read("blk.1.attn_qkv.weight"), stacked)
    assert np.array_equal(
        one.read_raw("blk.1.attn_qkv.weight")[:64], open_gguf(separate).read_raw("blk.1.attn_q.weight")
    )


def test_output_types(make_tiny: Callable[[TinyModel], Path], tmp_path: Path) -> None:
    def kinds(source: gguf.GGMLQuantizationType, outtype: str) -> str:
        path = make_tiny(TinyModel(type=source))
        after, _ = perform(path, tmp_path / f"{source.name}-{outtype}.gguf", Plan(outtype=outtype))
        assert after.tensors["blk.0.attn_output.weight"].type == source
        return after.tensors["blk.0.attn_q.weight"].type.name

    f32, bf16, q8 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0
    assert [kinds(t, "auto") for t in (f32, bf16, q8)] == ["F32", "BF16", "F16"]
    assert [kinds(t, "keep") for t in (f32, bf16, q8)] == ["F32", "BF16", "Q8_0"]
    assert [kinds(t, "f16") for t in (f32, q8)] == ["F16", "F16"]


def test_values_too_large_for_f16_are_refused(tiny: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    large.write_bytes(tiny.read_bytes())
    info = open_gguf(large).tensors["blk.0.attn_q.weight"]
    with large.open("r+b") as file:
        file.seek(info.offset)
        file.write(np.full(64, 1e6, np.float32).tobytes())
    with pytest.raises(SurgeryError, match="too large for F16; use `outtype` f32 or bf16"):
        operate(open_gguf(large), tmp_path / "o.gguf", Plan(outtype="f16"))
    assert not (tmp_path / "o.gguf").exists()
    operate(open_gguf(large), tmp_path / "o.gguf", Plan(outtype="bf16"))


def test_rank_is_taken_and_one_too_large_refused(tiny: Path, tmp_path: Path) -> None:
    _, report = perform(tiny, tmp_path / "o.gguf", Plan(threshold=None, rank=7))
    assert {group.rank for group in report.groups} == {7}
    with pytest.raises(UsageError, match="`rank=65`: q of layer 0 has 64 components at the most"):
        operate(open_gguf(tiny), tmp_path / "p.gguf", Plan(threshold=None, rank=65))
    assert not (tmp_path / "p.gguf").exists()


def test_provenance_says_what_was_done(tiny: Path, tmp_path: Path) -> None:
    once, report = perform(tiny, tmp_path / "once.gguf", Plan(threshold=0.5, layers="1"))
    ranks = {group.group: [group.rank] for group in report.groups}
    assert once.get("surgery.method") == "shared-kv"
    assert once.get("surgery.threshold") == 0.5
    assert once.get("surgery.layers") == [1]
    assert (once.get("surgery.ranks.q"), once.get("surgery.ranks.kv")) == (ranks["q"], ranks["kv"])
    assert once.get("surgery.source.name") == "tiny.gguf"
    assert once.get("surgery.source.sha256") == hashlib.sha256(tiny.read_bytes()).hexdigest()
    twice, _ = perform(tmp_path / "once.gguf", tmp_path / "twice.gguf", Plan(method="separate"))
    assert twice.get("surgery.method") == "separate"
    earlier = json.loads(twice.get("surgery.previous"))
    assert earlier["surgery.threshold"] == 0.5
    thrice, _ = perform(tmp_path / "twice.gguf", tmp_path / "thrice.gguf", Plan())
    assert json.loads(thrice.get("surgery.previous"))["surgery.previous"] == earlier


def test_random_control_uses_the_rank_of_shared_kv_and_loses_more(embedded: Path, tmp_path: Path) -> None:
    plan = Plan(threshold=0.5, layers="3")
    _, shared = perform(embedded, tmp_path / "s.gguf", plan)
    one, random = perform(embedded, tmp_path / "r.gguf", replace(plan, method="random"))
    assert [group.rank for group in random.groups] == [group.rank for group in shared.groups]
    assert all(r.explained < s.explained for r, s in zip(random.groups, shared.groups, strict=True))
    again, _ = perform(embedded, tmp_path / "again.gguf", replace(plan, method="random"))
    other, _ = perform(embedded, tmp_path / "other.gguf", replace(plan, method="random", seed=1))
    name = "blk.3.attn_k.weight"
    assert_same_weights(one, again, [name])
    assert not np.allclose(one.read(name), other.read(name), atol=0.1 * np.abs(one.read(name)).max())


def test_random_subspaces_of_matrices_of_one_shape_are_different(tiny: Path, tmp_path: Path) -> None:
    plan = Plan(method="random", rank=5, targets="gate+up", mean="none", layers="1", outtype="f32")
    model, _ = perform(tiny, tmp_path / "r.gguf", plan)
    gate, up = (model.read(f"blk.1.ffn_{role}.weight") for role in ("gate", "up"))
    for together in (np.vstack([gate, up]), np.hstack([gate, up])):
        assert np.linalg.matrix_rank(together, tol=1e-3 * np.linalg.norm(together, 2)) == 10


@pytest.mark.parametrize("layers", ["all", "1"])
def test_the_size_of_a_file_is_known_before_it_is_written(tiny: Path, tmp_path: Path, layers: str) -> None:
    plan, source = Plan(rank=5, layers=layers, outtype="f16"), open_gguf(tiny)
    model, _ = perform(tiny, tmp_path / "o.gguf", plan)
    expected = source.file_bytes + LOW_RANK.growth(source, plan)
    assert 0 <= model.file_bytes - expected < 4096  # what was done, as metadata


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [3e38, 1e19])
@pytest.mark.parametrize("plan", [Plan(threshold=0.5), Plan("cross-layer", threshold=0.5, group_layers="all")])
def test_numbers_whose_squares_overflow_are_refused(tiny: Path, tmp_path: Path, plan: Plan, value: float) -> None:
    source = with_number(tiny, tmp_path / "large.gguf", "blk.1.attn_k.weight", value)
    with pytest.raises(
        SurgeryError, match=r"large\.gguf: tensor blk\.1\.attn_k\.weight holds numbers up to .*overflow"
    ):
        operate(open_gguf(source), tmp_path / "o.gguf", plan)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.filterwarnings("ignore:.* encountered")
def test_a_report_never_holds_nan(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_number(tiny, tmp_path / "large.gguf", "blk.1.attn_k.weight", 3e38)

    monkeypatch.setattr(layers, "_finite_rows", read_projection)
    with pytest.raises(SurgeryError, match=r"large\.gguf: kv of layer 1 cannot be rebuilt"):
        operate(open_gguf(source), tmp_path / "o.gguf", Plan(threshold=0.5))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    "choices",
    [
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"threshold": 0.5, "rank": 3},
        {"threshold": None, "rank": 0},
        {"method": "pca"},
        {"mean": "median"},
        {"outtype": "q4_0"},
        {"targets": ""},
        {"targets": "qq"},
        {"targets": "p"},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(choices: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Plan(**choices)  # type: ignore[arg-type]
