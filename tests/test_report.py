"""A report: its tables, files and command; what a model wrote is shown as text."""

import copy
import csv
import io
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from pipeline.cli.main import cli
from pipeline.report.answer import answer
from pipeline.report.page import render_page
from pipeline.report.passages import passages
from pipeline.report.study_charts import study_figures
from pipeline.report.tables import as_csv, as_markdown
from pipeline.report.task_tables import tasks_as_csv
from pipeline.report.write import write_report
from tests.made_up_study import ONE_LINE, SCRIPT, find, made_up_study, made_up_text, unknown


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


def test_a_page_says_why_the_source_has_no_answer() -> None:
    results = made_up_study(**ONE_LINE)
    results["base"] |= {"answer": None, "answer_failure": f"its chat template fails: {SCRIPT}"}
    page = render_page(results, answer(results), [])
    assert "The source has no answer: its chat template fails: &lt;script&gt;" in page


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


def test_control_characters_are_shown_in_a_report(tmp_path: Path) -> None:
    results = made_up_study(**ONE_LINE)
    results["study"] |= {"model": "m\x1b[31m\u202e\x00.gguf", "text": "t\x07"}
    find(results, "shared-kv 0.5 attention, Q8_0").update(label="x\x1b\udcff")
    write_report(results, tmp_path / "report.html")
    for path in tmp_path.rglob("*.*"):
        if path.suffix not in (".png", ".json"):
            assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", path.read_text()), path
    assert "m\\x1b[31m\\u202e\\x00.gguf" in (tmp_path / "report.html").read_text()
    assert all(ElementTree.fromstring(path.read_text()) is not None for path in tmp_path.rglob("*.svg"))


def test_each_text_has_a_column_and_a_single_speed_no_spread() -> None:
    results = made_up_study(**ONE_LINE)
    assert "on wikitext-2 test" not in as_markdown(results)
    results["study"]["texts"] = [{"name": name, "sha256": name, "chunks": 20} for name in ("prose.txt", "python-code")]
    for cell in results["cells"]:
        cell["texts"] = [made_up_text(cell, "prose.txt", 0.5), made_up_text(cell, "python-code", 2.0)]
        cell["worst"] = "python-code"
    find(results, "none, Q8_0").update(prompt_speed={"low": 900.0, "median": 900.0, "high": 900.0})
    heading, _, first, *_ = as_markdown(results).splitlines()
    cells = dict(zip(heading.split(" | "), first.split(" | "), strict=True))
    assert cells["on prose.txt (nats a token)"] == "0.000700"
    assert cells["on python-code (nats a token)"] == "0.00280 (worst)"
    assert cells["prompt (tokens/s)"] == "900"


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


def test_tasks_have_columns_a_table_and_a_heat_map(tmp_path: Path) -> None:
    results = made_up_study(**ONE_LINE)
    source = {
        "task": "piqa",
        "metric": "acc",
        "items": 200,
        "higher_is_better": True,
        "value": {"mean": 0.7, "low": 0.633, "high": 0.759},
        "base": None,
        "difference": None,
    }
    lost = {"difference": {"mean": -0.05, "low": -0.1, "high": 0.0}, "gained": 5, "lost": 15, "p": 0.0414}
    cell = find(results, "none, Q8_0")
    results["base"]["tasks"] = [source]
    cell["tasks"] = [source | {"value": {"mean": 0.65, "low": 0.582, "high": 0.713}, "difference": lost}]
    share = {"needles": 1, "depth": 4096, "place": 0.25, "items": 5, "found": 0.8, "low": 0.376, "high": 0.964}
    for model in (results["base"], cell):
        model["passkeys"] = [share]
    heading, _, first, second, *_ = as_markdown(results).splitlines()
    place = heading.split(" | ").index("piqa: acc")
    assert [line.split(" | ")[place] for line in (first, second)] == ["0.6500", "\N{EN DASH}"]
    rows = list(csv.DictReader(io.StringIO(tasks_as_csv(results))))
    assert [(row["label"], row["mean"], row["lost"]) for row in rows] == [
        ("source", "0.7", ""),
        ("none, Q8_0", "0.65", "15"),
    ]
    (figure,) = [figure for figure in study_figures(results) if figure.name == "passkeys"]
    assert [panel.title for panel in figure.views[0].panels] == ["the source", "Q8_0 alone"]
    page = render_page(results, answer(results), [figure])
    assert "What it can still do" in page
    assert "piqa: acc of 200 items" in page
    assert '<td class="number">-0.0500</td><td class="number">-0.10 to 0.00</td>' in page
    assert "4,096" in page
