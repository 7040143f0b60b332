"""The charts of a report draw what the study measured."""

from typing import Any

import pytest

from pipeline.report.answer import answer
from pipeline.report.cells import FACTORED, FILE
from pipeline.report.chart_parts import log_scale
from pipeline.report.chart_rows import ends, loss_rows, rank_rows, size_rows
from pipeline.report.numbers import NOTHING
from pipeline.report.page import render_page, specifications
from pipeline.report.study_charts import study_figures
from tests.made_up_study import ONE_LINE, find, made_up_study


def test_the_lines_of_the_loss_figure() -> None:
    rows = loss_rows(made_up_study(), "kld", "threshold")
    assert len(rows) == 36
    assert {row["panel"] for row in rows} == {"F16", "Q8_0", "Q4_K_M"}
    assert {(row["method"], row["variant"]) for row in rows} == {
        ("shared-kv", "attention"),
        ("separate", "attention"),
        ("separate", "weights"),
    }
    assert all(row["low"] < row["value"] < row["high"] for row in rows)
    assert loss_rows(made_up_study(), "kld", "rank") == []
    shares = [row["x"] for row in loss_rows(made_up_study(thresholds=(0.4,)), "ppl", "share")]
    assert shares == pytest.approx([0.59] * 9)


def test_what_a_log_axis_cannot_show_is_left_out() -> None:
    results = made_up_study(quants=("F16",))
    find(results, "shared-kv 0.9 attention, F16").update(kld_mean=0.0, kld_low=0.0, kld_high=0.0)
    find(results, "shared-kv 0.7 attention, F16").update(kld_low=-0.01)
    rows = loss_rows(results, "kld", "threshold")
    assert "shared-kv 0.9 attention, F16" not in {row["combination"] for row in rows}
    assert min(ends(rows)) > 1e-4
    assert next(row for row in rows if row["combination"] == "shared-kv 0.7 attention, F16")["low"] < 1e-4


def test_the_front_of_the_size_figure_is_the_studys() -> None:
    results = made_up_study()
    front = {row["combination"] for row in size_rows(results, FILE) if row["front"]}
    assert front == {"F16 alone", "Q8_0 alone", "Q4_K_M alone"}
    assert "shared-kv 0.5 attention, Q4_K_M" in {r["combination"] for r in size_rows(results, FACTORED) if r["front"]}


def test_ranks_are_shown_once_an_operation() -> None:
    rows = rank_rows(made_up_study())
    assert len({row["operation"] for row in rows}) == 12
    assert len(rows) == 12 * 30 * 2
    assert {row["group"] for row in rows} == {"q", "k+v"}
    assert all(0 <= row["share of the full rank"] <= 1 for row in rows)


def test_layers_that_share_components_each_have_their_rank() -> None:
    results = made_up_study(**ONE_LINE)
    shared = {"layer": 3, "layers": [3, 4, 5], "group": "kv", "rank": 7, "full_rank": 384, "explained": None}
    results["cells"][1]["ranks"] = [shared]
    rows = [row for row in rank_rows(results) if row["operation"] == "shared-kv threshold 0.9"]
    assert [(row["layer"], row["rank"], row["variance kept"]) for row in rows] == [(n, 7, NOTHING) for n in (3, 4, 5)]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.02, 0.3], [0.02, 0.05, 0.1, 0.2]),
        ([0.002, 5.0], [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
        ([1e-5, 8.0], [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]),
        ([0.5, 0.5], [0.5]),
    ],
)
def test_ticks_of_a_log_axis(values: list[float], ticks: list[float]) -> None:
    domain, found = log_scale(values)
    assert found == ticks
    assert domain[0] < min(values) <= max(values) < domain[1]


STUDIES: dict[str, dict[str, Any]] = {
    "one cell": {"methods": (), "quants": ("Q4_K_M",)},
    "no surgery": {"methods": ()},
    "one method": ONE_LINE,
    "ranks": ONE_LINE | {"axis": "rank"},
    "latents": ONE_LINE | {"axis": "cache"},
    "budgets and caches": ONE_LINE | {"axis": "budget", "caches": ("f16", "q8_0")},
}


@pytest.mark.parametrize("study", STUDIES)
def test_any_study_has_a_page_and_valid_charts(study: str) -> None:
    results = made_up_study(**STUDIES[study])
    figures = study_figures(results)
    assert all(specification["width"] == "container" for specification in specifications(figures).values())
    page = render_page(results, answer(results), figures)
    assert all(cell["label"].split(", ")[-1] in page for cell in results["cells"])
    assert (f"kld-over-{STUDIES[study].get('axis', 'threshold')}" in page) == (study not in ("one cell", "no surgery"))
