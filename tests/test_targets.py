"""What `--targets` may name, which matrices that is in a model, and what is made of each."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.decomposition import PCA

from pipeline.attention import find_projections
from pipeline.cli.main import cli
from pipeline.compare.grid import Grid
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.operation.layer_groups import check_plan
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.targets import TARGETS, parse_targets, settled_targets, target_roles
from tests.tiny_model import TinyModel, tensors_of, write_tiny_model

pytestmark = pytest.mark.numerical

NAMES = {role: f"attn_{role}" for role in "qkv"} | {
    "o": "attn_output",
    **{r: f"ffn_{r}" for r in ("gate", "up", "down")},
}
FUSED = TinyModel(architecture="phi3", fused=True)


@pytest.mark.parametrize(
    ("text", "names", "settled"),
    [
        ("q,k", ("qk",), "qk"),
        ("k q", ("kq",), "qk"),
        ("up,q,o,k", ("qk", "up", "o"), "qk+o+up"),
        ("q,k,v,o,gate,up,down", ("qkv", "o", "gate", "up", "down"), "all"),
        ("attention", ("attention",), "attention"),
        ("qkv+o", ("qkv", "o"), "attention"),
        ("ffn,attention", ("ffn", "attention"), "all"),
        ("down+gate", ("down", "gate"), "gate+down"),
        ("all", ("all",), "all"),
    ],
)
def test_names_and_letters(text: str, names: tuple[str, ...], settled: str) -> None:
    assert parse_targets(text) == names
    assert settled_targets(text) == settled
    assert target_roles(settled) == target_roles(text)
    assert Plan(targets=Plan(targets=text).targets) == Plan(targets=text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("upp", "'upp' is no projection.*did you mean up?"),
        ("atention", "did you mean attention?"),
        ("q,x", "'x' is no projection"),
        ("qq", "q is named twice"),
        ("attention,o", "o is named twice"),
        ("", "expected some of q, k, v, o, gate, up and down"),
        (",", "expected some of"),
    ],
)
def test_what_is_no_target_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        Plan(targets=text)
    assert refused.value.argument == "targets"


def matrices(model: GGUFModel) -> dict[tuple[int, str], np.ndarray]:
    """Every target of a tiny model, read by its own name, or as its rows of a tensor of several."""
    found: dict[tuple[int, str], np.ndarray] = {}
    for layer in range(2):
        read = {role: f"blk.{layer}.{name}.weight" for role, name in NAMES.items()}
        found |= {(layer, role): model.read(name) for role, name in read.items() if name in model.tensors}
        if "blk.0.attn_qkv.weight" in model.tensors:
            qkv = model.read(f"blk.{layer}.attn_qkv.weight")
            found |= {(layer, role): part for role, part in zip("qkv", np.split(qkv, [64, 96]), strict=True)}
            halves = np.split(model.read(read["up"]), 2)
            found |= {(layer, role): part for role, part in zip(("gate", "up"), halves, strict=True)}
    return found


@pytest.mark.parametrize("tiny_model", [TinyModel(), FUSED], ids=["llama", "phi3"])
@pytest.mark.parametrize(
    ("method", "together"),
    [("separate", []), ("shared-kv", [("k", "v")]), ("shared-gate-up", [("k", "v"), ("gate", "up")])],
)
def test_products_are_those_of_the_reference_for_every_projection(
    make_tiny: Callable[[TinyModel], Path],
    tmp_path: Path,
    tiny_model: TinyModel,
    method: str,
    together: list[tuple[str, ...]],
) -> None:
    source = open_gguf(make_tiny(tiny_model))
    report = operate(source, tmp_path / "o.gguf", Plan(method=method, targets="all", rank=20))
    before, after = matrices(source), matrices(open_gguf(tmp_path / "o.gguf"))
    assert before.keys() == {(layer, role) for layer in range(2) for role in TARGETS}
    alone = [(role,) for role in TARGETS if not any(role in roles for roles in together)]
    rng = np.random.default_rng(0)
    for layer in range(2):
        for roles in (*alone, *together):
            rows = np.vstack([before[layer, role] for role in roles])
            pca = PCA(20, svd_solver="full").fit(rows)
            expected = pca.inverse_transform(pca.transform(rows))
            x = rng.standard_normal((rows.shape[1], 5))
            assert np.allclose(np.vstack([after[layer, role] for role in roles]) @ x, expected @ x, atol=1e-4)
    assert len(report.groups) == 2 * (len(alone) + len(together))
    untouched = source.tensors.keys() - {
        f"blk.{n}.{name}.weight" for n in range(2) for name in (*NAMES.values(), "attn_qkv")
    }
    written = open_gguf(tmp_path / "o.gguf")
    assert all(np.array_equal(source.read_raw(name), written.read_raw(name)) for name in untouched)


@pytest.mark.parametrize("target", ["gate", "up"])
def test_one_half_of_a_tensor_keeps_its_bytes(
    make_tiny: Callable[[TinyModel], Path], tmp_path: Path, target: str
) -> None:
    source = open_gguf(make_tiny(replace(FUSED, type=gguf.GGMLQuantizationType.Q8_0)))
    plan = Plan(method="shared-gate-up", targets=target, rank=5, outtype="keep")
    operate(source, tmp_path / "o.gguf", plan)
    name = "blk.1.ffn_up.weight"
    changed = np.split((open_gguf(tmp_path / "o.gguf").read_raw(name) != source.read_raw(name)).any(axis=1), 2)
    assert [half.any() for half in changed] == [target == "gate", target == "up"]


def without(model: TinyModel, *kinds: str) -> dict[str, np.ndarray]:
    return {name: values for name, values in tensors_of(model).items() if not any(kind in name for kind in kinds)}


def test_a_model_without_a_gate_has_up_and_down(tmp_path: Path) -> None:
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", tensors=without(TinyModel(), "gate")))
    report = operate(model, tmp_path / "o.gguf", Plan(method="shared-gate-up", targets="ffn", rank=3))
    assert [group.group for group in report.groups] == ["up", "down"] * 2
    for targets in ("gate", "gate,up,down"):
        with pytest.raises(
            UsageError, match=f"`targets='{targets.replace(',', '.')}'`: none of the chosen layers has "
        ):
            operate(model, tmp_path / "p.gguf", Plan(targets=targets))
    assert not (tmp_path / "p.gguf").exists()


def test_what_no_target_is_known_for_is_left_alone_and_listed(tmp_path: Path) -> None:
    tensors = without(TinyModel(), "blk.1.ffn_g", "blk.1.ffn_u", "blk.1.ffn_d")
    tensors |= {f"blk.1.ffn_{name}.weight": np.zeros((96, 64), np.float32) for name in ("gate.0", "up.0", "routed_up")}
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", tensors=tensors))
    report = operate(model, tmp_path / "o.gguf", Plan(targets="ffn", rank=3))
    assert {group.layer for group in report.groups} == {0}
    assert report.skipped_by_reason == {"ffn_gate.0, ffn_routed_up, ffn_up.0": [1]}
    with pytest.raises(UsageError, match=r"has a matrix for that alone; left alone: ffn_gate\.0"):
        operate(model, tmp_path / "p.gguf", Plan(targets="ffn", layers="1"))
    assert find_projections(model, "qkv").skipped == {}


def test_gate_and_up_in_one_tensor_of_an_unknown_architecture_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of(TinyModel(fused=True))
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", tensors=tensors))
    operate(model, tmp_path / "o.gguf", Plan(targets="kv"))
    with pytest.raises(SurgeryError, match=r"blk\.0\.ffn_up\.weight has twice the rows .*llama models"):
        operate(model, tmp_path / "p.gguf", Plan(targets="up"))
    tensors["blk.0.ffn_down.weight"] = tensors["blk.0.ffn_down.weight"][:, :32].copy()
    model = open_gguf(write_tiny_model(tmp_path / "m.gguf", tensors=tensors))
    with pytest.raises(SurgeryError, match=r"layer 0: the shapes .* do not fit together"):
        operate(model, tmp_path / "p.gguf", Plan(targets="up"))


@pytest.mark.parametrize("method", ["separate", "shared-gate-up", "random"])
def test_one_budget_is_kept_to_over_all_targets(tiny: Path, tmp_path: Path, method: str) -> None:
    for budget in (0.2, 0.7):
        report = operate(open_gguf(tiny), tmp_path / "o.gguf", Plan(method, "all", budget=budget), force=True)
        assert 0.95 * budget <= report.factor_numbers / report.dense_numbers <= budget
    whole = operate(open_gguf(tiny), tmp_path / "o.gguf", Plan(method, "all", budget=1), force=True)
    assert whole.output_bytes == tiny.stat().st_size
    assert (tmp_path / "o.gguf").read_bytes() == tiny.read_bytes()


def test_methods_that_do_the_same_to_the_targets_are_one() -> None:
    assert Plan("separate", "ffn", rank=1).effective() == Plan("shared-kv", "down,up,gate", rank=1).effective()
    assert (
        Plan("shared-gate-up", "o", rank=1).effective()
        == Plan("cross-layer", "o", rank=1, group_layers="2").effective()
    )
    assert Plan("shared-gate-up", "up", rank=1).effective() != Plan("separate", "up", rank=1).effective()
    assert Plan("separate", "k", rank=1).effective() != Plan("shared-kv", "k", rank=1).effective()


def test_a_method_that_shares_nothing_of_the_targets_is_refused(tiny: Path) -> None:
    for plan, same in (
        (Plan("shared-experts", "ffn"), "shared-gate-up"),
        (Plan("cross-layer", "kv", group_layers="1"), "shared-kv"),
        (Plan("shared-experts-by-use", "ffn", metric="inputs"), "shared-gate-up"),
    ):
        with pytest.raises(UsageError, match=f"does to {plan.targets} of .* what {same} does"):
            check_plan(open_gguf(tiny), plan)
    check_plan(open_gguf(tiny), Plan("shared-gate-up", "ffn"))
    for method, targets, same in (
        ("shared-kv", "q+ffn", "separate"),
        ("shared-gate-up", "qkv", "shared-kv"),
        ("cross-layer", "o", "separate"),
    ):
        groups = "2" if method == "cross-layer" else None
        refused = CliRunner().invoke(
            cli, ["operate", str(tiny), "-o", "o.gguf", "--method", method, "--targets", targets]
            + (["--group-layers", groups] if groups else []),
        )  # fmt: skip
        assert refused.exit_code == 2
        assert f"--method '{method}': does to the targets {targets} what {same} does" in refused.stderr
        with pytest.raises(UsageError, match=re.escape(f"does to the targets {targets} what {same} does")):
            Grid(methods=(method,), targets=(targets,), group_layers=("2",) if groups else ()).cells()
    assert [cell.method for cell in Grid(targets=("q",), ranks=(4,), quants=("source",)).cells()] == [
        "none",
        "separate",
    ]
