"""The library as `import surgery` has it: docs/python.md line by line, laziness, errors, and results as tables."""

import ast
import doctest
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import surgery as api
from pipeline.tabular import FRAMES, Tabular

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


def test_the_page_on_python_is_true_line_by_line(tiny: Path, english: Path) -> None:
    for name in ("calibration.txt", "evaluation.txt"):
        Path(name).write_text(english.read_text())
    page = PAGE.read_text().replace('"smollm2-135m"', repr(str(tiny)))
    examples = doctest.DocTestParser().get_doctest(page, {}, PAGE.name, str(PAGE), 0)
    lines: list[str] = []
    failed, tried = doctest.DocTestRunner().run(examples, out=lines.append)
    assert not failed, "".join(lines)
    assert tried > 20


def test_every_name_is_there_and_nothing_is_imported_before() -> None:
    assert all(getattr(api, name) for name in api.__all__)
    program = "import sys, surgery; print([name for name in ('numpy', 'llama_cpp', 'pipeline') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PAGE.parent.parent
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = api.nothing


@pytest.mark.parametrize(
    ("choices", "argument"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"rank": 2.5}, "rank"),
        ({"rank": 3, "budget": 0.5}, "budget"),
        ({"targets": "x"}, "targets"),
        ({"group_layers": "2"}, "group_layers"),
        ({"method": "shred-kv"}, "method"),
    ],
)
def test_errors_name_the_argument_and_no_option(choices: dict[str, Any], argument: str) -> None:
    with pytest.raises(api.UsageError) as caught:
        api.Plan(**choices)
    assert caught.value.argument == argument
    assert f"`{argument}" in str(caught.value)
    assert "--" not in str(caught.value)


def test_what_is_read_is_never_written_over(tiny: Path, english: Path) -> None:
    text = Path("text.txt")
    text.write_text(english.read_text())
    for output in (tiny, text):
        with pytest.raises(api.UsageError, match="is the input itself"):
            api.operate(tiny, output, api.Plan(metric="inputs"), calibration=f"self,{text}", force=True)
        with pytest.raises(api.UsageError, match="is the input itself"):
            api.convert_to_latent(tiny, output, calibration=text, force=True)
        with pytest.raises(api.UsageError, match="is the input itself"):
            api.quantize(tiny, output, "Q4_0", importance_matrix=text, force=True)
    assert text.read_text() == english.read_text()


class Found(Tabular):
    def rows(self) -> list[dict[str, Any]]:
        return [{"layer": "<1>", "share": 0.123456}, {"layer": "2", "share": None}]

    def headline(self) -> str:
        return "a & b"


def test_a_table_is_escaped_html() -> None:
    found = Found()._repr_html_()
    assert "<caption>a &amp; b</caption>" in found
    assert "<td>&lt;1&gt;</td><td>0.1235</td>" in found
    assert "<td>2</td><td></td>" in found


def test_a_frame_has_the_rows_or_the_error_says_what_to_install() -> None:
    if not any(find_spec(name) for name in FRAMES):
        with pytest.raises(api.SurgeryError, match="pip install pandas"):
            Found().to_frame()
        return
    frame = Found().to_frame()
    assert list(frame.columns) == ["layer", "share"]
    assert len(frame) == 2


def test_only_the_command_line_speaks_of_options_and_of_how_it_was_called() -> None:
    root = PAGE.parent.parent
    for file in [*root.glob("pipeline/**/*.py"), *root.glob("native/*.py"), *root.glob("surgery/*.py")]:
        if "cli" in file.relative_to(root).parts or file.name == "harness.py":  # which is a command line's, too
            continue
        text = file.read_text()
        assert "sys.argv" not in text, file
        raised = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Raise)]
        said = [part.value for node in raised for part in ast.walk(node) if isinstance(part, ast.Constant)]
        options = [
            words for words in said if re.search(r"(?<!\w)--[a-z]", str(words)) and "pip install" not in str(words)
        ]
        assert not options, (file, options)
