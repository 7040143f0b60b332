"""A report says what the study's numbers say, and shows what a model wrote as text."""

import copy
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from pipeline.cli.main import cli
from pipeline.report.answer import answer
from pipeline.report.cells import FACTORED, FILE
from pipeline.report.chart_parts import log_scale
from pipeline.report.chart_rows import ends, loss_rows, rank_rows, size_rows
from pipeline.report.numbers import NOTHING, duration, interval, megabytes, significant, with_error
from pipeline.report.page import render_page, specifications
from pipeline.report.passages import passages
from pipeline.report.study_charts import study_figures
from pipeline.report.tables import as_csv, as_markdown
from pipeline.report.write import write_report
from tests.made_up_study import SCRIPT, made_up_study, unknown

ONE_LINE: dict[str, Any] = {"methods": (("shared-kv", "attention"),), "thresholds": (0.9, 0.5), "quants": ("Q8_0",)}


def find(results: dict[str, Any], label: str) -> dict[str, Any]:
    cell: dict[str, Any] = next(cell for cell in results["cells"] if cell["label"] == label)
    return cell


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.01234, 0.00042, "0.0123 ± 0.0004"),
        (0.01234, 0.00012, "0.01234 ± 0.00012"),
        (12.9485, 0.755, "12.9 ± 0.8"),
        (8.00951, 0.0199, "8.01 ± 0.02"),
        (51872.9, 5357.8, "51,873 ± 5,358"),
        (0.5, 0.0, "0.500"),
        (2e-9, 3e-10, "2.0e-09 ± 3e-10"),
        (None, 0.1, NOTHING),
        (float("inf"), 0.1, NOTHING),
    ],
)
def test_a_value_is_rounded_to_its_error(value: float | None, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_other_numbers() -> None:
    assert interval(0.04761, 0.05102) == "0.0476 to 0.0510"
    assert interval(0.9, 7.23) == "0.9 to 7.2"
    assert interval(0.5, 0.5) == "0.50 to 0.50"
    assert interval(None, 0.1) == NOTHING
    assert (significant(0), significant(0.000123456), significant(1234.5)) == ("0", "0.000123", "1,234")
    assert megabytes(105_400_000) == "105.4 MB"
    assert [duration(seconds) for seconds in (31.4, 1268, 7500)] == ["31 s", "21 min", "2 h 5 min"]


def test_the_answer_is_the_smallest_file_within_the_limit() -> None:
    found = answer(made_up_study())
    assert found.text[0] == (
        "Q4_K_M alone loses least for its size: 0.0493 ± 0.0008 nats a token (95% interval 0.0475 to 0.0511)"
        " at 105.4 MB, 39% of the source's 270.9 MB."
    )
    assert "Surgery gains nothing within that limit" in " ".join(found.sentences)
    limits = {limit: [cell and cell["label"] for cell in row] for limit, row in found.choices}
    assert limits[0.01] == ["none, Q8_0", "none, Q8_0"]
    assert limits[1.0] == ["none, Q4_K_M", "shared-kv 0.5 attention, Q4_K_M"]


def test_the_answer_says_what_stored_factors_would_save() -> None:
    results = made_up_study(quants=("Q8_0",))
    find(results, "shared-kv 0.7 attention, Q8_0").update(kld_high=0.0999)
    assert (
        "If the factors were stored, shared-kv 0.7 attention, Q8_0 would take 142.1 MB, 2% less, and lose 0.0883 ±"
        in " ".join(answer(results).sentences)
    )


def test_the_upper_end_of_the_interval_decides() -> None:
    results = made_up_study(methods=())
    find(results, "none, Q4_K_M").update(kld_mean=0.0999, kld_high=0.1001)
    best = answer(results).best
    assert best
    assert best["label"] == "none, Q8_0"


def test_an_unmeasured_or_running_cell_is_never_the_answer() -> None:
    results = made_up_study()
    find(results, "none, Q4_K_M").update(status="running")
    unknown(find(results, "none, Q8_0"), "failed", "llama.cpp refused")
    found = answer(results)
    assert found.best
    assert found.best["quant"] == "Q4_K_M"
    assert found.best["method"] == "shared-kv"
    assert found.sentences[-1] == (
        "Not all of 39 combinations are complete: 1 failed, 1 running; the answer may change."
    )


def test_a_study_in_which_everything_loses_much() -> None:
    results = made_up_study(thresholds=(0.1,), quants=("F16",))
    results["cells"] = [cell for cell in results["cells"] if cell["method"] != "none"]
    found = answer(results)
    assert found.headline.startswith(" loses least, but much: ")
    assert "Of 3 combinations, none has a 95% interval that lies below 0.1" in found.sentences[0]


def test_a_study_that_has_only_begun() -> None:
    results = made_up_study(quants=("F16",))
    for cell in results["cells"]:
        unknown(cell, "pending")
    results["base"] = dict.fromkeys(results["base"])
    assert answer(results).text[0] == "Nothing is measured yet, of 13 combinations."
    assert study_figures(results) == []
    assert "Nothing" in render_page(results, answer(results), [])


def test_a_file_that_is_no_smaller_than_the_source_is_not_praised() -> None:
    results = made_up_study(quants=("Q8_0",))
    results["base"]["file_bytes"] = 98_000_000
    assert (
        answer(results)
        .text[0]
        .startswith(
            "The source itself loses least for its size: nothing that loses little is smaller than its 98.0 MB."
            " Nearest comes Q8_0 alone: 0.00140 ±"
        )
    )


def test_interactions_are_counted() -> None:
    results = made_up_study()
    find(results, "separate 0.9 weights, Q4_K_M")["interaction"]["verdict"] = "more than adds up"
    assert (
        "Surgery and quantisation together lose the sum of both alone in 35 cases,"
        " more than the sum of both alone in 1 case."
    ) in answer(results).sentences


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


def test_an_answer_parts_from_the_sources() -> None:
    results = made_up_study(quants=("F16",))
    source, other = results["base"]["answer"], find(results, "separate 0.5 weights, F16")
    shown = {passage.label: passage for passage in passages(results, None)}
    found = shown[other["label"]]
    assert (found.before, found.different) == ("Machine learning is a ", "way")
    assert found.before + found.different + found.after == "".join(other["answer"])
    assert (
        found.verdict
        == "parts at token 5, where the source says \N{LEFT DOUBLE QUOTATION MARK}subset\N{RIGHT DOUBLE QUOTATION MARK}"
    )
    assert shown["F16 alone"].verdict == "says what the source says"
    other.update(answer=source[:3], first_difference=3)
    assert {p.label: p for p in passages(results, None)}[other["label"]].different == "(ends here)"
    other.update(answer=[*source, " So"], first_difference=len(source))
    assert "where the source ends" in {p.label: p for p in passages(results, None)}[other["label"]].verdict


def test_what_a_model_wrote_is_text() -> None:
    results = made_up_study(**ONE_LINE)
    find(results, "none, Q8_0").update(reason=f"said {SCRIPT}", status="stopped")
    results["study"] |= {"prompt": SCRIPT, "model": SCRIPT, "text": SCRIPT, "command": f"x </script>{SCRIPT}"}
    find(results, "shared-kv 0.5 attention, Q8_0").update(label=f"{SCRIPT}</script>")
    page = render_page(results, answer(results), study_figures(results))
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert len(re.findall("</script", page, re.IGNORECASE)) == 3  # the charts' data, Vega, and the page's own
    assert "<script>" not in as_markdown(results)


def test_the_page_names_nothing_to_fetch() -> None:
    results = made_up_study(**ONE_LINE)
    page = render_page(results, answer(results), study_figures(results))
    outside_scripts = re.sub("<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"https?://|url\(|@import|src=|<link (?!rel=.icon. href=.data:,)", outside_scripts)
    assert "default-src 'none'" in outside_scripts


def test_tables() -> None:
    results = made_up_study()
    unknown(find(results, "none, Q8_0"), "failed", "no memory | left")
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert len(rows) == 39
    assert float(rows[3]["kld_mean"]) == results["cells"][3]["kld_mean"]
    assert (rows[1]["kld_mean"], rows[1]["status"], rows[1]["pareto"]) == ("", "failed", "")
    assert rows[2]["pareto"] == "file factored"
    lines = as_markdown(results).splitlines()
    assert len(lines) == 41
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "failed: no memory \\| left" in lines[3]


def test_files_of_a_report(tmp_path: Path) -> None:
    results = made_up_study(**ONE_LINE)
    results["cells"][1]["ppl"] = float("inf")
    before = copy.deepcopy(results)
    written = write_report(results, tmp_path / "report.html")
    assert results == before
    assert written["cells"] == {"done": 3}
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "tables/study.json").read_text())["cells"][1]["ppl"] is None
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"cells.csv", "cells.md", "study.json"}
    plots = sorted((tmp_path / "plots").iterdir())
    assert sorted(written["plots"]) == sorted(map(str, plots))
    assert all(ElementTree.fromstring(p.read_text()).tag.endswith("svg") for p in plots if p.suffix == ".svg")
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in plots if p.suffix == ".png")
    assert {p.stem for p in plots} >= {"kld-over-threshold", "kld-over-file", "ranks"}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the command takes for a study."""
    results = made_up_study(methods=(("shared-kv", "attention"),), quants=("Q4_K_M",))
    monkeypatch.setattr("pipeline.compare.results.study_results", lambda folder: results)
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


def test_the_command_answers_and_writes(study: Path) -> None:
    result = call(study)
    assert result.exit_code == 0, result.output
    assert "Q4_K_M alone loses least for its size" in result.output
    assert f"wrote {study / 'report.html'}" in result.output
    again = call(study, "-o", "other.html", "--json")
    assert json.loads(again.stdout)["page"] == "other.html"
    assert Path("tables/cells.csv").read_text() == (study / "tables/cells.csv").read_text()


def test_a_study_of_a_model(tiny: Path, english: Path) -> None:
    grid = ("--methods", "shared-kv", "--thresholds", "0.6,0.9", "--quants", "source,Q8_0", "--answer-tokens", "8")
    compared = ["compare", str(tiny), *grid, "--text", str(english), "--ctx", "64", "--chunks", "2", "-o", "study"]
    assert CliRunner().invoke(cli, compared).exit_code == 0
    result = call("study", "--json")
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    assert written["cells"] == {"done": 5}
    found, made_up = json.loads(Path("study/tables/study.json").read_text()), made_up_study()
    assert found["study"].keys() == made_up["study"].keys()
    assert found["base"].keys() == made_up["base"].keys()
    assert found["cells"][1].keys() == made_up["cells"][-1].keys()
    assert found["cells"][1]["ranks"][0].keys() == made_up["cells"][-1]["ranks"][0].keys()


def test_a_folder_without_a_study() -> None:
    Path("empty").mkdir()
    result = call("empty")
    assert result.exit_code == 2
    assert "empty: holds no study" in result.stderr
    assert not list(Path("empty").iterdir())


BAD_INPUT = {
    "no folder": ("nowhere", (), 2, "nowhere: no such folder"),
    "not html": (None, ("-o", "ledger.sqlite"), 2, "ledger.sqlite: expected a name that ends in .html"),
    "no output folder": (None, ("-o", "no/x.html"), 2, "the folder no does not exist"),
    "a folder": (None, ("-o", "folder.html"), 2, "folder.html: is a folder"),
    "a file in the way": (None, ("-o", "busy/x.html"), 2, "busy/tables: is no folder"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_line(study: Path, case: str) -> None:
    folder, options, code, message = BAD_INPUT[case]
    Path("folder.html").mkdir()
    Path("busy").mkdir()
    Path("busy/tables").touch()
    result = call(folder or study, *options)
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1), result.output
    assert message in result.stderr
    assert not list(study.iterdir())


def test_without_the_extra_one_line_says_what_to_install(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    result = call(study)
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "surgery: drawing needs the package altair; in Surgery's folder run: make install-report"
    )
    assert len(result.stderr.splitlines()) == 1
