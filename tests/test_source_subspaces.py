"""What a study keeps of its source's subspaces, and how its report shows it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.compare.results import study_results
from pipeline.compare.source_subspaces import look_into_source, outline
from pipeline.compare.study import Study, StudySettings, open_study
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import read_text
from pipeline.layers import AttentionLayers
from pipeline.observations.statistics_file import Calibration, CalibrationOrigin, open_calibration
from pipeline.report.figures import Figure
from pipeline.report.page import specifications
from pipeline.report.study_charts import study_figures
from pipeline.report.subspace_figures import layer_keys
from pipeline.subspaces.outline import between_outline, spectrum_outline, within_outline
from pipeline.subspaces.similarity import Lens, compared_layers, energies_within, spectrum
from tests.commands import call
from tests.made_up_source import made_up_damage, made_up_subspaces
from tests.made_up_study import made_up_study


def silent(doing: str) -> None:
    """Hears what is being done, and does nothing."""


@pytest.mark.parametrize("metric", ["weights", "inputs"])
def test_the_outline_has_the_numbers_of_inspect(tiny: Path, taken: Path, metric: str) -> None:
    model = open_gguf(tiny)
    lens = Lens(AttentionLayers(model, open_calibration(taken)), metric, "keep")
    found = outline(lens, silent)
    group = found["spectrum"]["groups"]["kv"]
    assert (group["ranks"][0], group["ranks"][-1]) == (1, 64)
    whole = spectrum(lens, lens.layers[1])["explained"]["kv"]
    assert group["shares"][1] == pytest.approx([whole[rank - 1] for rank in group["ranks"]], abs=1e-5)
    within = [energies_within(lens, layer) for layer in lens.layers.values()]
    pair = found["within"]["v_in_k"]
    assert pair["shares"][1] == pytest.approx([within[1]["v_in_k"][rank - 1] for rank in pair["ranks"]], abs=1e-5)
    assert pair["own"][-1] == pytest.approx(np.mean([layer["v_in_v"][-1] for layer in within]), abs=1e-5)
    assert pair["random_weights"][3] == pytest.approx(np.mean([layer["v_in_random"][3] for layer in within]), abs=1e-5)
    assert pair["random"][-1] == 32 / 64
    compared = compared_layers(lens)
    for rank, overlap in zip(found["between"]["ranks"], compared["overlap"], strict=True):
        assert rank["pairs"] == [[], [pytest.approx(overlap[1][0], abs=1e-5)]]


def test_beyond_a_layers_full_rank_nothing_is_added() -> None:
    layers = [{"layer": n, "explained": {"k": list(np.linspace(0.1, 1, full))}} for n, full in ((2, 4), (5, 8))]
    found = spectrum_outline(layers)
    assert found["layers"] == [2, 5]
    assert found["groups"]["k"]["ranks"] == list(range(1, 9))
    assert found["groups"]["k"]["shares"][0] == [0.1, 0.4, 0.7, 1, 1, 1, 1, 1]


def test_an_outline_is_small() -> None:
    rng = np.random.default_rng(0)
    pairs = ("v_in_k", "k_in_v", "v_in_v", "k_in_k", "v_in_random", "k_in_random")
    groups = {"q": 4096, "k": 1024, "v": 1024, "kv": 2048}
    spectra = [{"layer": n, "explained": {g: rng.random(full) for g, full in groups.items()}} for n in range(30)]
    within = [{"layer": n, **{pair: rng.random(1024) for pair in pairs}} for n in range(30)]
    compared = {"layers": list(range(30)), "ranks": [1, 2, 3, 4], "random": [0.1] * 4}
    compared |= {name: list(rng.random((4, 30, 30))) for name in ("overlap", "random_weights")}
    found = [spectrum_outline(spectra), within_outline(within, 4096), between_outline(compared)]
    assert len(json.dumps(found)) < 100_000


@contextmanager
def opened(tiny: Path, english: Path, calibration: Calibration | None = None) -> Iterator[Study]:
    settings = StudySettings((read_text(str(english)),), n_ctx=64)
    with open_study(Path("study"), open_gguf(tiny), settings, lambda: calibration) as study:
        yield study


def test_a_source_is_looked_into_once(tiny: Path, english: Path, taken: Path) -> None:
    told: list[str] = []
    statistics = open_calibration(taken)
    with opened(tiny, english) as study:
        look_into_source(study, told.append)
    assert {text.split(":")[0] for text in told} == {"looking into the source, weights"}
    told.clear()
    weights = study_results(Path("study")).subspaces
    assert list(weights) == ["weights"]
    with opened(tiny, english, statistics) as study:
        look_into_source(study, told.append)
    assert {text.split(":")[0] for text in told} == {"looking into the source, inputs"}
    told.clear()
    for calibration in (statistics, None):
        with opened(tiny, english, calibration) as study:
            look_into_source(study, told.append)
    assert not told
    both = study_results(Path("study")).subspaces
    assert both["weights"] == weights["weights"]
    other: CalibrationOrigin = replace(statistics.origin, text_sha256="0" * 64)
    with opened(tiny, english, replace(statistics, origin=other)) as study:
        look_into_source(study, told.append)
    assert {text.split(":")[0] for text in told} == {"looking into the source, inputs"}


def test_compare_keeps_what_the_report_draws(tiny: Path, english: Path, tmp_path: Path) -> None:
    command = ["compare", str(tiny), "-o", "study", "--text", str(english), "--methods", "shared-kv"]
    command += ["--thresholds", "0.9", "--quants", "source", "--ctx", "64", "--chunks", "2", "--answer-tokens", "0"]
    assert call(*command).exit_code == 0
    report = call("report", "study")
    assert report.exit_code == 0, report.output
    assert '<h2 id="spectrum">' in Path("study/report.html").read_text()
    assert {path.name for path in Path("study/plots").glob("*-weights.svg")} == {
        "spectrum-weights.svg", "within-weights.svg", "between-weights.svg",
    }  # fmt: skip


def figures_of(results: dict[str, Any]) -> dict[str, Figure]:
    return {figure.name: figure for figure in study_figures(results)}


def test_figures_have_a_view_a_metric() -> None:
    results = made_up_study()
    assert not figures_of(results).keys() & {"spectrum", "within", "between"}
    results["subspaces"] = made_up_subspaces()
    figures = figures_of(results)
    for name, panels in (("spectrum", 4), ("within", 2), ("between", 4)):
        views = figures[name].views
        assert [(view.name, len(view.panels)) for view in views] == [
            (f"{name}-weights", panels), (f"{name}-inputs", panels)
        ]  # fmt: skip
    del results["subspaces"]["inputs"]
    assert [view.label for view in figures_of(results)["spectrum"].views] == ["By weights"]


def test_a_single_layer_has_nothing_to_be_compared_with() -> None:
    results = made_up_study() | {"subspaces": made_up_subspaces(layers=1)}
    assert list(figures_of(results))[-2:] == ["spectrum", "within"]


def test_the_legend_of_few_layers() -> None:
    assert [key.label for key in layer_keys([3])] == ["layer 3"]
    assert [key.label for key in layer_keys([3, 5])] == ["layer 3", "layer 5"]
    assert [key.label for key in layer_keys([0, 1, 2, 3])] == ["layer 0", "layer 2", "layer 3"]


def test_layers_operated_on_alone_have_a_figure_of_their_own() -> None:
    results = made_up_study()
    before = figures_of(results)
    results["cells"] += made_up_damage()
    after = figures_of(results)
    assert list(after) == [*before, "damage"]
    for name, figure in before.items():
        assert specifications([after[name]]) == specifications([figure])
    (view,) = after["damage"].views
    assert (view.name, view.label) == ("damage-weights-0.9", "Threshold 0.9, weights")
