"""Mixtures of experts: each expert's gate, up and down against a reference, streamed, quantised, fused and shared."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from sklearn.decomposition import PCA

from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.operation.operate import operate, operate_family
from pipeline.operation.patch import write_patched
from pipeline.operation.plan import Plan
from pipeline.quantization import quantize
from tests.tiny_architectures import FEED_FORWARD, WIDTH, write_mixture
from tests.tiny_model import TinyModel, tensors_of, write_tiny_model

pytestmark = pytest.mark.numerical

EXPERTS, USED = 4, 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with experts: read-only."""
    return write_mixture(tmp_path_factory.mktemp("mixture") / "m.gguf", EXPERTS, USED)


def matrices(model: GGUFModel, layer: int) -> dict[tuple[str, str, int], np.ndarray]:
    """gate, up and down by family, role and expert, from whole tensors."""
    found: dict[tuple[str, str, int], np.ndarray] = {}
    for family, suffix in (("experts", "exps"), ("shared", "shexp")):
        whole = {
            role: model.read(name)
            for role in ("gate", "up", "down", "gate_up")
            if (name := f"blk.{layer}.ffn_{role}_{suffix}.weight") in model.tensors
        }
        if "gate_up" in whole:
            whole["gate"], whole["up"] = np.split(whole.pop("gate_up"), 2, axis=1)
        for role, values in whole.items():
            each = values if values.ndim == 3 else values[None]
            found |= {(family, role, expert): matrix for expert, matrix in enumerate(each)}
    return found


def reference(rows: np.ndarray, rank: int) -> np.ndarray:
    pca = PCA(rank, svd_solver="full").fit(rows.astype(np.float64))
    result: np.ndarray = pca.inverse_transform(pca.transform(rows.astype(np.float64)))
    return result


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("method", ["separate", "shared-gate-up"])
@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0])
def test_products_are_those_of_the_reference_for_every_expert(
    tmp_path: Path, fused: bool, method: str, kind: GGMLQuantizationType
) -> None:
    source = open_gguf(write_mixture(tmp_path / "m.gguf", EXPERTS, USED, fused=fused, shared=32, type=kind))
    report = operate(source, tmp_path / "o.gguf", Plan(method, "ffn", rank=9, outtype="f32"))
    written = open_gguf(tmp_path / "o.gguf")
    together = [("gate",), ("up",)] if method == "separate" else [("gate", "up")]
    rng = np.random.default_rng(0)
    for layer in range(2):
        before, after = matrices(source, layer), matrices(written, layer)
        assert len(before) == 3 * (EXPERTS + 1)
        for family, count in (("experts", EXPERTS), ("shared", 1)):
            for roles, expert in [(roles, expert) for roles in (*together, ("down",)) for expert in range(count)]:
                rows, found = (np.vstack([each[family, role, expert] for role in roles]) for each in (before, after))
                x = rng.standard_normal((rows.shape[1], 5))
                np.testing.assert_allclose(found @ x, reference(rows, 9) @ x, atol=1e-4)
    names = [*("+".join(roles) for roles in together), "down"]
    expected = [f"{name}.{family}" for family in ("shared", "experts") for name in names]
    assert [group.group for group in report.groups] == expected * 2
    assert [len(group.expert_ranks) for group in report.groups] == ([0] * len(names) + [EXPERTS] * len(names)) * 2
    untouched = [name for name in source.tensors if ".ffn_" not in name or "norm" in name or "gate_inp" in name]
    assert all(np.array_equal(source.read_raw(name), written.read_raw(name)) for name in untouched)


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_all_experts_of_a_layer_may_share_components(tmp_path: Path, fused: bool) -> None:
    source = open_gguf(write_mixture(tmp_path / "m.gguf", EXPERTS, USED, fused=fused, shared=32))
    report = operate(source, tmp_path / "o.gguf", Plan("shared-experts", "ffn", rank=20))
    written = open_gguf(tmp_path / "o.gguf")
    stacked = [("experts", role, expert) for expert in range(EXPERTS) for role in ("gate", "up")]
    alone = [[("experts", "down", expert)] for expert in range(EXPERTS)]
    of_shared = [[("shared", role, 0) for role in roles] for roles in (("gate", "up"), ("down",))]
    for layer in range(2):
        before, after = matrices(source, layer), matrices(written, layer)
        for members in (stacked, *alone, *of_shared):
            rows, found = (np.vstack([each[member] for member in members]) for each in (before, after))
            np.testing.assert_allclose(found, reference(rows, 20), atol=1e-4)
    together = [group for group in report.groups if group.group == "gate+up.experts"]
    assert [(group.rows, group.rank, group.expert_ranks) for group in together] == [(EXPERTS * 192, 20, ())] * 2
    assert together[0].factor_numbers == 20 * (EXPERTS * 192 + WIDTH) + WIDTH  # one basis and one mean for all
    assert written.get("surgery.ranks.gate+up.experts") == [20, 20]
    assert together[0].shown_group == "gate+up of all experts together"


def test_half_of_a_quantised_tensor_keeps_its_bytes(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    source = open_gguf(write_mixture(tmp_path / "m.gguf", EXPERTS, USED, fused=True, type=kind))
    operate(source, tmp_path / "o.gguf", Plan("separate", "up", rank=5, outtype="keep"))
    written = open_gguf(tmp_path / "o.gguf")
    for name in source.tensors:
        changed = (written.read_raw(name) != source.read_raw(name)).any(axis=-1)
        if name.endswith("gate_up_exps.weight"):
            assert not changed[:, :FEED_FORWARD].any()
            assert changed[:, FEED_FORWARD:].any(axis=1).all()
        else:
            assert not changed.any()


def test_a_share_of_the_variance_and_a_budget_give_each_expert_its_own_rank(mixture: Path, tmp_path: Path) -> None:
    model = open_gguf(mixture)
    report = operate(model, tmp_path / "o.gguf", Plan("separate", "ffn", threshold=0.5))
    for layer in range(2):
        rows = matrices(model, layer)
        for group in (group for group in report.groups if group.layer == layer):
            role = group.group.removesuffix(".experts")
            shares = [np.cumsum(PCA().fit(rows["experts", role, e]).explained_variance_ratio_) for e in range(EXPERTS)]
            assert group.expert_ranks == tuple(int(np.searchsorted(share, 0.5)) + 1 for share in shares)
            assert group.rank == max(group.expert_ranks)
            kept = np.mean([share[rank - 1] for share, rank in zip(shares, group.expert_ranks, strict=True)])
            assert group.explained == pytest.approx(kept, abs=1e-4)
    written = open_gguf(tmp_path / "o.gguf").get("surgery.ranks.up.experts")
    assert written == [rank for group in report.groups if group.group == "up.experts" for rank in group.expert_ranks]
    budget = operate(model, tmp_path / "b.gguf", Plan("shared-gate-up", "all", budget=0.4))
    assert 0.39 < budget.factor_numbers / budget.dense_numbers <= 0.4
    numbers = sum(info.parameters for name, info in model.tensors.items() if "attn_" in name or "exps" in name)
    assert budget.dense_numbers == numbers - 2 * WIDTH  # attn_norm
    shared = operate(model, tmp_path / "s.gguf", Plan("shared-experts", "ffn", budget=0.4))
    assert 0.39 < shared.factor_numbers / shared.dense_numbers <= 0.4
    whole = operate(model, tmp_path / "w.gguf", Plan("separate", "ffn", threshold=1))
    assert (tmp_path / "w.gguf").read_bytes() == mixture.read_bytes()
    assert whole.factor_numbers == whole.dense_numbers


def test_layers_may_have_different_numbers_of_experts(tmp_path: Path) -> None:
    tensors, rng = tensors_of(TinyModel()), np.random.default_rng(0)
    for layer, count in enumerate((3, 2)):
        rows = rng.standard_normal((count, FEED_FORWARD, WIDTH), np.float32)
        tensors[f"blk.{layer}.ffn_up_exps.weight"] = rows
        tensors[f"blk.{layer}.ffn_down_exps.weight"] = rows.swapaxes(1, 2).copy()
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", tensors=tensors))
    operate(model, tmp_path / "o.gguf", Plan("separate", "up", rank=5))
    assert open_gguf(tmp_path / "o.gguf").get("surgery.ranks.up.experts") == [5, 5, 5, 5, 5, 0]


def test_random_subspaces_differ_from_expert_to_expert(mixture: Path, tmp_path: Path) -> None:
    operate(open_gguf(mixture), tmp_path / "o.gguf", Plan("random", "up", rank=8, mean="none"))
    first, second = open_gguf(tmp_path / "o.gguf").read("blk.0.ffn_up_exps.weight")[:2]
    angles = np.linalg.svd(
        np.linalg.svd(first, full_matrices=False)[2][:8] @ np.linalg.svd(second, full_matrices=False)[2][:8].T
    )[1]
    assert np.linalg.matrix_rank(first, tol=1e-4) == 8
    assert angles.max() < 0.99


def test_no_tensor_of_experts_is_in_memory_as_a_whole(tmp_path: Path) -> None:
    tensors = tensors_of(TinyModel())
    rows = np.random.default_rng(0).standard_normal((64, 256, 128), np.float32)
    tensors |= {"blk.0.ffn_up_exps.weight": rows, "blk.0.ffn_down_exps.weight": rows.swapaxes(1, 2).copy()}
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", tensors=tensors))
    tracemalloc.start()
    operate(model, tmp_path / "o.gguf", Plan("separate", "up", rank=2, layers="0"), threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes / 2


def test_quantised_as_the_whole_file_would_be(mixture: Path, tmp_path: Path) -> None:
    model, plan = open_gguf(mixture), Plan("separate", "ffn", rank=3)
    quantize(model, tmp_path / "q.gguf", "Q8_0")
    operate_family(model, {tmp_path / "part.gguf": plan}, operated_only=True)
    write_patched(open_gguf(tmp_path / "q.gguf"), open_gguf(tmp_path / "part.gguf"), tmp_path / "patched.gguf")
    operate(model, tmp_path / "o.gguf", plan)
    quantize(open_gguf(tmp_path / "o.gguf"), tmp_path / "expected.gguf", "Q8_0")
    assert (tmp_path / "patched.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("ffn_up_exps", (EXPERTS, 90, WIDTH), "do not fit together"),
        ("ffn_up_exps", (EXPERTS - 1, FEED_FORWARD, WIDTH), "do not fit together"),
        ("ffn_down_exps", (FEED_FORWARD, WIDTH), "should be a matrix for each expert"),
        ("ffn_up_shexp", (1, 32, WIDTH), "should be a matrix"),
        ("ffn_gate_up_exps", (EXPERTS, 2 * FEED_FORWARD + 1, WIDTH), "do not fit together"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, name: str, shape: tuple[int, ...], said: str
) -> None:
    tensors = {name: values for name, values in tensors_of(TinyModel()).items() if ".ffn_" not in name}
    shapes = {"gate": (EXPERTS, FEED_FORWARD, WIDTH), "up": (EXPERTS, FEED_FORWARD, WIDTH)}
    shapes |= {"down": (EXPERTS, WIDTH, FEED_FORWARD)}
    for layer in range(2):
        tensors |= {f"blk.{layer}.ffn_{role}_exps.weight": np.ones(s, np.float32) for role, s in shapes.items()}
        tensors |= {f"blk.{layer}.ffn_{role}_shexp.weight": np.ones((WIDTH, 32), np.float32) for role in ("down",)}
    tensors[f"blk.1.{name}.weight"] = np.ones(shape, np.float32)
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", tensors=tensors))
    with pytest.raises(SurgeryError, match=rf"(blk\.1\.{name}|layer 1).*{said}"):
        operate(model, tmp_path / "o.gguf", Plan(targets="ffn", rank=3))
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize(
    ("architecture", "kinds", "reason"),
    [
        ("llama", {"experts"}, "a feed-forward block in the place of which llama.cpp computes the experts"),
        ("grok", {"", "experts"}, ""),
        ("refact", {""}, "experts, with which llama.cpp computes nothing in refact models"),
    ],
)
def test_what_llama_cpp_does_not_compute_beside_the_other_is_left_alone(
    tmp_path: Path, architecture: str, kinds: set[str], reason: str
) -> None:
    shape = TinyModel(architecture=architecture)
    rows = np.random.default_rng(0).standard_normal((2, FEED_FORWARD, WIDTH), np.float32)
    tensors = tensors_of(shape)
    tensors |= {"blk.1.ffn_up_exps.weight": rows, "blk.1.ffn_down_exps.weight": rows.swapaxes(1, 2).copy()}
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", shape, tensors=tensors))
    report = operate(model, tmp_path / "o.gguf", Plan("separate", "up", rank=3))
    assert {group.group.partition(".")[2] for group in report.groups if group.layer == 1} == kinds
    assert report.skipped_by_reason == ({reason: [1]} if reason else {})
