"""Each projection of each layer operated on alone: the numbers are those of evaluating such a file."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import cli
from pipeline.compare.results import study_results
from pipeline.evaluation.evaluate import evaluate
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import read_text
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan


def test_damage_is_measured_drawn_and_not_measured_again(tiny: Path, english: Path, tmp_path: Path) -> None:
    command = ["inspect", str(tiny), "--damage", "--threshold", "0.7", "--text", str(english), "--chunks", "2"]
    command += ["--study", "study", "--plots", "plots", "--json"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["damage"]
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    operate(open_gguf(tiny), tmp_path / "o.gguf", Plan(method="separate", threshold=0.7, targets="v", layers="1"))
    expected = evaluate(tmp_path / "o.gguf", read_text(str(english)), base=tiny, chunks=2)
    cell = found["layers"][1]["v"]
    assert cell["kld_mean"] == pytest.approx(expected.kld_mean, rel=1e-4)
    assert cell["low"] <= cell["kld_mean"] <= cell["high"]
    assert list(cell["ranks"]) == ["v"]
    assert list(found["layers"][0]["qkv"]["ranks"]) == ["q", "k", "v"]
    assert Path("plots/damage.png").read_bytes().startswith(b"\x89PNG")
    assert Path("plots/damage.svg").read_text().startswith("<svg")
    again = CliRunner().invoke(cli, [*command[:-3], "--json"])
    assert json.loads(again.stdout)["damage"] == found
    assert "comparing" not in again.stderr
    text = CliRunner().invoke(cli, command[:-3])
    assert "hit hardest:" in text.stdout


def test_a_study_of_layers_alone_is_reported(tiny: Path, english: Path) -> None:
    command = ["inspect", str(tiny), "--damage", "--threshold", "0.7", "--text", str(english), "--chunks", "2"]
    assert CliRunner().invoke(cli, [*command, "--study", "study"]).exit_code == 0
    cells = study_results(Path("study")).cells
    assert [(cell.damage, cell.pareto) for cell in cells] == [(True, ())] * 8
    result = CliRunner().invoke(cli, ["report", "study"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Nothing is compared yet.")
    assert Path("study/plots/damage-weights-0.7.svg").read_text().startswith("<svg")
    assert "What one layer alone costs" in Path("study/report.html").read_text()


def test_options_of_damage_need_it(tiny: Path) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(tiny), "--chunks", "3"])
    assert (result.exit_code, result.stderr) == (2, "surgery: --chunks: is for --damage; add it\n")
