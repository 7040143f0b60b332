"""Tables of README and docs, written where their marks are."""

import re
import runpy
from pathlib import Path

import pytest

import studies
from pipeline.errors import SurgeryError
from studies.documents import document, markdown

ROOT = Path(__file__).parent.parent


def test_a_table_is_put_between_its_marks_and_what_changed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- sizes -->\nold\n<!-- end of sizes -->\nafter\n")
    document(page, "sizes", markdown(["a", "b"], [["1", "2"]]))
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert page.read_text() == f"before\n<!-- sizes -->\n\n{table}\n\n<!-- end of sizes -->\nafter\n"
    first = capsys.readouterr().out.splitlines()
    assert first[0] == f"changed    {page}, sizes"
    assert {"    - old", "    + | 1 | 2 |"} <= set(first)
    document(page, "sizes", table)
    assert capsys.readouterr().out == f"unchanged  {page}, sizes\n"
    document(page, "sizes", table.replace("2", "3"))
    assert capsys.readouterr().out.splitlines()[1:] == ["    - | 1 | 2 |", "    + | 1 | 3 |"]


def test_a_page_without_the_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- sizes -->\nold\n")
    with pytest.raises(SurgeryError, match=r"expected the lines <!-- sizes --> and <!-- end of sizes -->"):
        document(page, "sizes", "new")
    assert page.read_text() == "<!-- sizes -->\nold\n"


def test_every_table_that_a_study_makes_has_its_place() -> None:
    call = re.compile(r'document\((docs|docs\.parent) / "([\w.]+)", "([\w-]+)"')
    sources = [path.read_text() for path in Path(studies.__file__).parent.glob("*.py")]
    places = {match for source in sources for match in call.findall(source)}
    assert len(places) >= 9
    for folder, page, name in places:
        text = (ROOT / {"docs": "docs", "docs.parent": "."}[folder] / page).read_text()
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- end of {name} -->\n") == 1, (page, name)


def test_readme_fits_a_page() -> None:
    before, _, _ = (ROOT / "README.md").read_text().partition("\n| command |")
    words = [word for word in before.split() if any(map(str.isalnum, word))]  # without a table's lines and signs
    assert 300 < len(words) <= 600


def test_a_registry_is_shown_no_link_that_leads_nowhere() -> None:
    pytest.importorskip("setuptools")
    without = runpy.run_path(str(ROOT / "setup.py"))["without_relative_links"]
    shown = without((ROOT / "README.md").read_text(encoding="utf-8"))
    assert re.findall(r"\]\((?!https://)[^)]*\)", shown) == []
    assert "[llama.cpp](https://github.com/ggml-org/llama.cpp)" in shown
    assert "measured: docs/findings.md, docs/log.md;" in without(
        "measured: [docs/findings.md](docs/findings.md), [docs/log.md](a);"
    )
    assert without("a\n\n![KL](docs/x.svg)\n\nb ![y](https://y)") == "a\n\nb ![y](https://y)"
