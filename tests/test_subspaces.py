"""A look inside: shares of energy, overlaps of subspaces, and the pictures of them."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from pipeline.decompose.subspaces import cumulative_shares, directions_read, leading_directions, overlaps
from pipeline.decompose.weighted import Metric, weigh_rows
from pipeline.gguf_file.reader import open_gguf
from pipeline.layers import AttentionLayers
from pipeline.subspaces.similarity import Lens, compared_layers, energies_within, spectrum
from tests.commands import call, call_json
from tests.tiny_architectures import write_mixture, write_t5


def test_overlap_is_that_of_the_angles_between_subspaces() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((20, 5)), rng.standard_normal((20, 5))
    matrix = overlaps([one, other, one @ rng.standard_normal((5, 5))], None)
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(np.square(np.cos(subspace_angles(one, other))).mean())
    assert matrix[0, 2] == pytest.approx(1)


def test_under_a_metric_it_is_that_of_canonical_correlations() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 12))
    x -= x.mean(axis=0)
    one, other = rng.standard_normal((12, 2)), rng.standard_normal((12, 2))
    (value,) = overlaps([one, other], np.linalg.cholesky(x.T @ x / 400))[[0], [1]]
    left, right = CCA(2, max_iter=5000, tol=1e-12).fit_transform(x @ one, x @ other)
    correlations = [np.corrcoef(left[:, i], right[:, i])[0, 1] for i in range(2)]
    assert value == pytest.approx(np.square(correlations).mean(), rel=1e-5)


def test_random_subspaces_overlap_by_their_share_of_the_dimensions() -> None:
    spans = [np.random.default_rng(seed).standard_normal((60, 15)) for seed in range(40)]
    assert overlaps(spans, None)[np.triu_indices(40, 1)].mean() == pytest.approx(15 / 60, rel=0.01)


def test_shares_of_energy() -> None:
    rng = np.random.default_rng(0)
    rows, other = rng.standard_normal((8, 20)), rng.standard_normal((6, 20))
    directions, energies = leading_directions(rows)
    np.testing.assert_allclose(cumulative_shares(rows, directions), np.cumsum(energies) / energies.sum())
    within = cumulative_shares(other, directions)
    projected = other @ directions[:, :3] @ directions[:, :3].T
    assert within[2] == pytest.approx(np.square(projected).sum() / np.square(other).sum())


def test_directions_read_are_those_of_the_best_approximation() -> None:
    """Its row space: the approximation is unchanged by projecting its rows on what it is said to read."""
    rng = np.random.default_rng(0)
    rows, mixing = rng.standard_normal((10, 16)), rng.standard_normal((16, 16))
    metric = Metric(mixing @ mixing.T, [np.eye(10)])
    weighted = weigh_rows(rows, metric, "none").rows
    left, values, right = np.linalg.svd(weighted, full_matrices=False)
    approximation = metric.unweigh(left[:, :4] * values[:4], right[:4])
    read, _ = np.linalg.qr(directions_read(weighted, metric, 4))
    np.testing.assert_allclose(approximation @ read @ read.T, approximation, atol=1e-8)


def lens(path: Path, mean: str = "keep") -> Lens:
    return Lens(AttentionLayers(open_gguf(path)), "weights", mean)


def test_layers_of_a_random_model_share_nothing(tiny: Path) -> None:
    compared = compared_layers(lens(tiny))
    assert compared["layers"] == [0, 1]
    assert compared["random"] == [rank / 64 for rank in compared["ranks"]]
    for expected, own, weights in zip(compared["random"], compared["overlap"], compared["random_weights"], strict=True):
        assert own[0][1] == pytest.approx(expected, abs=0.12)
        assert weights[0][1] == pytest.approx(expected, abs=0.12)
    within = energies_within(lens(tiny), lens(tiny).layers[0])
    assert within["v_in_v"][-1] == within["k_in_k"][-1] == 1
    assert within["v_in_k"][15] == pytest.approx(16 / 64, abs=0.06)
    assert within["v_in_random"][15] == pytest.approx(16 / 64, abs=0.06)


def test_spectrum_is_numpys(tiny: Path) -> None:
    found = spectrum(lens(tiny, mean="none"), lens(tiny).layers[1])
    rows = open_gguf(tiny).read("blk.1.attn_k.weight").astype(np.float64)
    energies = np.square(np.linalg.svd(rows, compute_uv=False))
    shares = np.cumsum(energies) / energies.sum()
    np.testing.assert_allclose(found["explained"]["k"], shares, atol=1e-5)
    assert found["ranks"]["k"][2] == int(np.searchsorted(shares, 0.9)) + 1


@pytest.mark.parametrize("metric", ["weights", "attention"])
def test_inspect_computes_and_draws(tiny: Path, taken: Path, metric: str) -> None:
    options = ["--metric", metric, *(["--calibration", taken] if metric != "weights" else [])]
    found = call_json("inspect", tiny, "--spectrum", "--overlap", "--plots", "plots", *options)
    assert found["metric"] == metric
    layer = found["spectrum"][1]  # type: ignore[index]
    assert len(layer["explained"]["kv"]) == 64
    assert layer["ranks"]["q"][0] == next(i for i, share in enumerate(layer["explained"]["q"], 1) if share >= 0.99)
    overlap: dict = found["overlap"]  # type: ignore[assignment, type-arg]
    assert overlap["within"][1]["k_in_k"][-1] == pytest.approx(1, abs=1e-6)
    assert np.shape(overlap["between"]["overlap"]) == (len(overlap["between"]["ranks"]), 2, 2)
    names = ("spectrum", "overlap-k-v", "overlap-layers")
    assert {path.name for path in Path("plots").iterdir()} == {f"{n}.{kind}" for n in names for kind in ("svg", "png")}
    for name in names:
        assert (Path("plots") / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawn = "".join(ElementTree.parse(Path("plots") / f"{name}.svg").getroot().itertext())
        assert f"metric {metric}" in drawn
    assert "random weights" in drawn


def test_inspect_prints_overlaps(tiny: Path) -> None:
    text = call("inspect", tiny, "--overlap").output
    assert re.search(r"layer +v in k +v in random +k in v +k in random", text)
    assert text.splitlines()[-1].split()[0] == "32"  # half of the full rank


def test_pictures_are_not_overwritten_unasked(tiny: Path) -> None:
    first = call("inspect", tiny, "--spectrum", "--plots", "plots")
    assert first.exit_code == 0, first.output
    assert "drew plots/spectrum.svg" in first.output
    again = call("inspect", tiny, "--spectrum", "--plots", "plots")
    assert again.exit_code == 2
    assert "plots/spectrum.svg: exists already; add --force" in again.stderr
    assert call("inspect", tiny, "--spectrum", "--plots", "plots", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "inputs"], "--metric: is for --spectrum, --overlap and --damage; add one of them"),
        (["--plots", "x"], "--plots: is for --spectrum, --overlap and --damage; add one of them"),
        (["--overlap", "--calibration", "x"], "--calibration: is used by --metric inputs"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tiny: Path, options: list[str], message: str) -> None:
    result = call("inspect", tiny, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_the_extra_one_line_says_what_to_install(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    result = call("inspect", tiny, "--spectrum", "--plots", "plots")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "pip install -e '.[report]'" in result.stderr
    assert not Path("plots").exists()


def test_spectra_of_all_projections_and_of_each_expert(tiny: Path, tmp_path: Path) -> None:
    found = call_json("inspect", tiny, "--spectrum", "--targets", "all", "--plots", "plots")
    assert found["targets"] == "all"
    layer = found["spectrum"][1]  # type: ignore[index]
    assert list(layer["ranks"]) == ["q", "k", "v", "kv", "o", "gate", "up", "gate+up", "down"]
    rows = open_gguf(tiny).read("blk.1.ffn_down.weight")
    np.testing.assert_allclose(
        layer["explained"]["down"], np.cumsum(PCA().fit(rows).explained_variance_ratio_), atol=1e-5
    )
    assert "gate+up" in (Path("plots") / "spectrum.svg").read_text()
    mixture = write_mixture(tmp_path / "m.gguf", 3, 2, shared=32)
    layers = call_json("inspect", mixture, "--spectrum", "--targets", "up,o")["spectrum"]
    assert [list(layer["ranks"]) for layer in layers] == [["o", "up.shared", "up.experts"]] * 2  # type: ignore[attr-defined]
    experts = open_gguf(mixture).read("blk.0.ffn_up_exps.weight")
    shares = [np.cumsum(PCA().fit(expert).explained_variance_ratio_) for expert in experts]
    ranks = [[int(np.searchsorted(each, share)) + 1 for share in (0.99, 0.95, 0.9, 0.5, 0.3)] for each in shares]
    assert layers[0]["expert_ranks"]["up.experts"] == ranks  # type: ignore[index]
    assert layers[0]["ranks"]["up.experts"] == np.rint(np.mean(ranks, axis=0)).tolist()  # type: ignore[index]
    shown = call("inspect", mixture, "--spectrum", "--targets", "ffn").output
    assert "of the variance, of experts the mean" in shown
    assert shown.splitlines()[-1].split()[:2] == ["1", "down.experts"]


def test_the_summary_has_every_projection_and_what_is_left_alone(tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path / "m.gguf", 3, 2)
    summary = call_json("inspect", mixture)
    found = {each["projection"]: each for each in summary["projections"]}  # type: ignore[attr-defined]
    assert list(found) == ["q", "k", "v", "o", "gate.experts", "up.experts", "down.experts"]
    assert (found["up.experts"]["matrices"], found["up.experts"]["rows"], found["up.experts"]["columns"]) == (6, 96, 64)
    assert sum(each["parameters"] for each in found.values()) == 2 * (3 * 3 * 96 * 64 + 2 * 64 * 64 + 2 * 32 * 64)
    assert summary["left_alone"] == {}
    gpt = call_json("inspect", write_t5(tmp_path / "t5.gguf", decoder=True))
    assert gpt["projections"] == []
    assert "an encoder and a decoder" in next(iter(gpt["left_alone"]))  # type: ignore[call-overload]
