"""Grids: presets, files, and what makes no sense."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import studies
from pipeline.cli.grid_options import chosen_grids
from pipeline.cli.main import cli
from pipeline.compare.cell import Cell
from pipeline.compare.commands import cell_commands
from pipeline.compare.grid import PRESETS, Grid, grid_cells, load_grids, save_grids
from pipeline.errors import UsageError
from pipeline.operation.plan import Plan

GRID = Grid(methods=("shared-kv",), thresholds=(0.9, 0.6), quants=("source", "Q8_0"))


def test_presets_and_grid_files(tmp_path: Path) -> None:
    original = grid_cells(PRESETS["original"])
    assert len(original) == 12
    assert {getattr(cell.plan, "targets", None) for cell in original} == {"q"}
    grids = [GRID, Grid(methods=("random",), ranks=(4,), seeds=(0, 1), quants=("source",))]
    save_grids(tmp_path / "grid.yaml", grids, force=False)
    assert load_grids(tmp_path / "grid.yaml") == grids
    (tmp_path / "one.yaml").write_text("thresholds: 0.5\nquants: q8_0\n")
    assert grid_cells(load_grids(tmp_path / "one.yaml"))[0] == Cell(None, "Q8_0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("- 1", "expected `grids:`"),
        ("foo: 1", "unknown key 'foo'"),
        ("thresholds: [x]", "thresholds: \\['x'\\] is not what thresholds can be"),
        ("ranks: [true]", "is not what ranks can be"),
    ],
)
def test_grid_files_that_make_no_sense(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "grid.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_grids(tmp_path / "grid.yaml")


def test_quantised_caches_alone() -> None:
    """The price of quantised caches is asked for without any surgery."""
    labels = [
        cell.label
        for cell in grid_cells([Grid(methods=("none",), quants=("source",), cache_types=("f16", "q8_0", "q4_0"))])
    ]
    assert labels == ["source, cache q8_0", "source, cache q4_0"]
    assert Grid(methods=("none", "shared-kv"), thresholds=(0.9,)).plans() == [Plan(threshold=0.9)]
    result = CliRunner().invoke(cli, ["compare", "x.gguf", "-o", "s", "--methods", "none", "--thresholds", "0.9"])
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
    assert "--thresholds: none of the --methods uses it" in result.output
    shown = "".join(CliRunner().invoke(cli, ["compare", "--help"]).output.split())  # however it is wrapped
    assert "0.99,0.9,0.5" in shown
    assert "[default:shared-kv,separate]" in shown


def test_latents_are_compared_in_several_types(tmp_path: Path) -> None:
    """Each as large as its types make it, and made by its own command; other methods have no such choice."""
    grid = Grid(methods=("latent",), caches=(192,), outtypes=("auto", "keep"), quants=("source",))
    save_grids(tmp_path / "grid.yaml", [grid], force=False)
    assert load_grids(tmp_path / "grid.yaml") == [grid]
    cells = grid_cells([grid])
    assert [cell.label for cell in cells] == ["latent 192", "latent 192 keep"]
    assert cell_commands(cells[1], "m.gguf", None)[0] == "surgery latent m.gguf -o cell.gguf --cache 192 --outtype keep"
    with pytest.raises(UsageError, match="`outtypes`: none of the `methods` uses it; add one of latent"):
        replace(GRID, outtypes=("keep",)).plans()
    with pytest.raises(UsageError, match="outtype"):
        replace(grid, outtypes=("q9",)).plans()


def test_the_plans_of_the_studies_are_grids() -> None:
    counts = {path.stem: len(grid_cells(load_grids(path))) for path in Path(studies.__file__).parent.glob("*.yaml")}
    assert counts == {
        "shared_structure": 20,
        "cross_layer": 36,
        "latent_cache": 25,
        "calibration_texts": 2,
        "front": 4,
        "variations": 7,
        "where": 51,
    }


def test_options_overrule_the_blocks_that_use_them(tmp_path: Path) -> None:
    two = [GRID, Grid(methods=("random",), thresholds=(0.9,), quants=("source",))]
    save_grids(tmp_path / "two.yaml", two, force=False)

    def chosen(**options: Any) -> list[Grid]:
        names = [field.name for field in fields(Grid)]
        return chosen_grids({**dict.fromkeys(names), "preset": None, "plan_file": tmp_path / "two.yaml", **options})

    assert chosen() == two
    assert chosen(seeds=(1, 2)) == [GRID, replace(two[1], seeds=(1, 2))]
    assert chosen(ranks=(4,)) == [replace(grid, thresholds=(), ranks=(4,)) for grid in two]
    assert chosen(methods=("none",)) == [replace(grid, methods=("none",), thresholds=()) for grid in two]
    with pytest.raises(UsageError, match="`caches`: none of the `methods` uses it"):
        chosen(caches=(0.3,))
    with pytest.raises(UsageError, match="`seeds`: none of the `methods` uses it"):
        replace(GRID, seeds=(1,)).plans()


def test_an_empty_grid() -> None:
    with pytest.raises(UsageError, match="the grid is empty"):
        grid_cells([Grid(quants=("source",))])
