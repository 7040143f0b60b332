"""One object a layer: what it reads, that it reads it once, and that what is decomposed for a budget is kept."""

import gc
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.latent.convert import convert_to_latent
from pipeline.latent.plan import LatentPlan
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import open_calibration
from pipeline.operation import decomposer
from pipeline.operation.groups import Group
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import Decomposition, decompose_group
from tests.tiny_model import TinyModel


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor of any file was decoded, from now on."""
    counted: Counter[str] = Counter()
    read = GGUFModel.read

    def count(model: GGUFModel, name: str) -> np.ndarray:
        counted[name] += 1
        return read(model, name)

    monkeypatch.setattr(GGUFModel, "read", count)
    return counted


def of_attention(reads: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in reads.items() if "attn_" in name}


def test_a_layer_has_what_its_tensors_hold(make_tiny: Callable[[TinyModel], Path]) -> None:
    model = open_gguf(make_tiny(TinyModel(architecture="qwen2", bias=True)))
    layer = AttentionLayers(model)[1]
    assert (layer.heads, layer.kv_heads) == (
        model.hyperparameter("attention.head_count"), model.hyperparameter("attention.head_count_kv")
    )  # fmt: skip
    for role in "qkv":
        np.testing.assert_array_equal(layer.rows(role), model.read(f"blk.1.attn_{role}.weight"))
        np.testing.assert_array_equal(layer.bias(role), model.read(f"blk.1.attn_{role}.bias"))
    np.testing.assert_array_equal(layer.stacked("kv"), np.vstack([layer.rows("k"), layer.rows("v")]))


def test_threads_that_ask_at_once_get_what_was_made_once(tiny: Path) -> None:
    layer = AttentionLayers(open_gguf(tiny))[0]
    together, made = threading.Barrier(4), []

    def make() -> object:
        made.append(object())
        return made[-1]

    def ask(_: int) -> object:
        together.wait()
        return layer.once("thing", make)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == set(made)
    assert len(made) == 1
    with pytest.raises(ZeroDivisionError):
        layer.once("nothing", lambda: 1 // 0)


def test_a_layer_is_shared_while_somebody_holds_it(tiny: Path, reads: Counter[str]) -> None:
    layers = AttentionLayers(open_gguf(tiny))
    held = layers[0]
    assert layers[0] is held
    for _ in range(2):
        layers[0].rows("q")
    assert reads["blk.0.attn_q.weight"] == 1
    del held
    gc.collect()
    layers[0].rows("q")
    assert reads["blk.0.attn_q.weight"] == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_operating_reads_every_matrix_and_moment_once(
    tiny: Path, taken: Path, tmp_path: Path, reads: Counter[str], threads: int
) -> None:
    plan = Plan(metric="attention", mean="none", threshold=0.5)
    operate(open_gguf(tiny), tmp_path / "o.gguf", plan, calibration=open_calibration(taken), threads=threads)
    assert set(of_attention(reads).values()) == {1}
    assert {"blk.0.attn_output.weight", "blk.0.attn_input.second_moment"} <= reads.keys()


def test_converting_to_latent_reads_every_matrix_and_moment_once(
    tiny: Path, taken: Path, tmp_path: Path, reads: Counter[str]
) -> None:
    convert_to_latent(open_gguf(tiny), tmp_path / "o.gguf", LatentPlan(), open_calibration(taken))
    counts = of_attention(reads)
    written = {name: 2 for name in counts if name.endswith("attn_output.weight")}  # scaled into the file, too
    assert counts == dict.fromkeys(counts, 1) | written


@pytest.mark.parametrize(("kept", "passes"), [(None, 1), (0, 2)])
def test_a_budget_decomposes_once_what_it_can_keep(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int | None, passes: int
) -> None:
    decomposed: list[Group] = []

    def decompose(layers: AttentionLayers, group: Group, plans: Sequence[Plan]) -> Decomposition | None:
        decomposed.append(group)
        return decompose_group(layers, group, plans)

    monkeypatch.setattr(decomposer, "decompose_group", decompose)
    operate(open_gguf(tiny), tmp_path / "expected.gguf", plan := Plan(budget=0.4))
    decomposed.clear()
    if kept is not None:
        monkeypatch.setattr(decomposer, "MOST_KEPT", kept)
    report = operate(open_gguf(tiny), tmp_path / "o.gguf", plan)
    assert len(decomposed) == passes * len(report.groups)
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()
