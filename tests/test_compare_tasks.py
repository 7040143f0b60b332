"""Tasks as columns of a study: the same items as `surgery tasks` asks, resumed reply by reply, in results and report."""

import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from pipeline.cli.main import cli
from pipeline.cli.task_tables import print_study_tasks
from pipeline.compare.grid import Grid, grid_cells, grid_tasks, load_grids, save_grids
from pipeline.compare.ledger import LEDGER, open_ledger
from pipeline.compare.results import study_results
from pipeline.compare.run import StudyProgress, run_study
from pipeline.compare.study import StudySettings, open_study
from pipeline.compare.tasks import open_tasks
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import read_text
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.databases import rows_of
from tests.llama_task_files import write_hellaswag
from tests.test_tasks import ITEMS as LETTERS
from tests.test_tasks import write_task

ITEMS = 10
PASSKEYS: dict[str, Any] = {
    "tasks": ("passkey",),
    "depths": (256,),
    "places": (0.0, 1.0),
    "needles": (1,),
    "repeats": 1,
}


class Interrupted(Exception):
    pass


@dataclass
class Asked:
    """A study and how far its first, interrupted run and its second came."""

    folder: Path
    grid: Grid
    interrupted: StudyProgress
    resumed: StudyProgress


def run(folder: Path, model: Path, text: Path, grid: Grid, interrupt_at: str = "nothing") -> StudyProgress:
    """Measure the study of a grid, up to the first reply that is told as `interrupt_at`."""
    seen: list[StudyProgress] = []

    def watch(progress: StudyProgress) -> None:
        seen.append(replace(progress))
        if progress.doing == interrupt_at:
            raise Interrupted

    settings = StudySettings((read_text(str(text)),), chunks=2, n_ctx=64, answer_tokens=0, threads=1)
    source = open_gguf(model)
    with (
        open_tasks(source, grid_tasks([grid]), threads=1) as tasks,
        open_study(folder, source, settings, tasks=tasks) as study,
    ):
        try:
            return run_study(study, grid_cells([grid]), watch)
        except Interrupted:
            return seen[-1]


@pytest.fixture(scope="module")
def asked(tiny: Path, english: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Interrupted within the cell's questions, and gone on with: read-only."""
    folder = tmp_path_factory.mktemp("asked")
    file = write_hellaswag(folder / "items.txt", ITEMS)
    grid = Grid(methods=("shared-kv",), ranks=(4,), quants=("source",), hellaswag=str(file), **PASSKEYS)
    first = run(folder / "study", tiny, english, grid, interrupt_at="shared-kv rank 4: tasks")
    return Asked(folder / "study", grid, first, run(folder / "study", tiny, english, grid))


def by_hand(tiny: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SURGERY_CACHE", str(Path.cwd() / "cache"))
    operate(open_gguf(tiny), Path("cell.gguf"), Plan(threshold=None, rank=4))
    command = ["tasks", "cell.gguf", "--base", str(tiny), "--hellaswag", str(asked.grid.hellaswag), "--threads", "1"]
    command += [
        "--tasks",
        "passkey",
        "--depths",
        "256",
        "--places",
        "0,1",
        "--needles",
        "1",
        "--repeats",
        "1",
        "--json",
    ]
    found: dict[str, Any] = json.loads(CliRunner().invoke(cli, command).stdout)
    return found


def test_a_cell_has_what_its_file_has_beside_the_source(
    asked: Asked, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_hand(tiny, asked, monkeypatch)
    shown = json.loads(CliRunner().invoke(cli, ["compare", "--status", str(asked.folder), "--json"]).stdout)
    (cell,) = shown["cells"]
    assert cell["tasks"] == expected["results"]
    assert [cell["passkeys"], shown["base"]["passkeys"]] == expected["passkeys"]
    task = cell["tasks"][-1]
    assert task["items"] == ITEMS
    paired = task["difference"]
    assert paired["p"] == pytest.approx(binomtest(paired["gained"], paired["gained"] + paired["lost"]).pvalue)
    assert paired["gained"] - paired["lost"] == round(ITEMS * (task["value"]["mean"] - task["base"]["mean"]))


def test_nothing_is_asked_twice(asked: Asked, tiny: Path, english: Path) -> None:
    whole = asked.interrupted.questions_total // 2  # of the source, and of the cell
    assert whole < asked.interrupted.questions_done < 2 * whole
    assert asked.resumed.questions_total == 2 * whole - asked.interrupted.questions_done
    assert asked.resumed.questions_done == asked.resumed.questions_total
    assert asked.resumed.share == 1
    with sqlite3.connect(asked.folder / LEDGER) as db:
        assert db.execute("SELECT count(*) FROM replies").fetchone()[0] == 2 * whole
    again = run(asked.folder, tiny, english, asked.grid)
    assert (again.questions_total, again.cells_total) == (0, 0)


def replies(folder: Path) -> int:
    return rows_of(folder / LEDGER, "replies")


def test_a_killed_process_asks_no_more_than_a_round_again(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder, endings = tmp_path / "study", 4 * 100
    command = [
        sys.executable, "-m", "pipeline", "compare", str(tiny), "-o", str(folder), "--text", str(english),
        "--methods", "shared-kv", "--ranks", "4", "--quants", "source", "--ctx", "64", "--chunks", "2",
        "--answer-tokens", "0", "--hellaswag", str(write_hellaswag(tmp_path / "items.txt", 100)),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while replies(folder) <= endings:  # the source's, and some of the cell's
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = replies(folder)
    result = CliRunner().invoke(cli, [*command[3:], "--json"])
    assert result.exit_code == 0, result.output
    whole = CliRunner().invoke(cli, [*command[3:6], str(tmp_path / "whole"), *command[7:], "--json"])
    assert before < replies(folder) == replies(tmp_path / "whole")
    tasks, expected = (json.loads(each.stdout)["cells"][0]["tasks"] for each in (result, whole))
    assert tasks == expected


def copied(asked: Asked, name: str) -> Path:
    """The study's ledger alone, in a folder that a test may write."""
    folder = Path(name)
    folder.mkdir()
    (folder / LEDGER).write_bytes((asked.folder / LEDGER).read_bytes())
    return folder


def test_what_replies_come_to_is_computed_anew_without_asking(
    asked: Asked, tiny: Path, english: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right endings are other ones, the questions the same."""
    lines = Path(str(asked.grid.hellaswag)).read_text().split("\n")
    lines[1::6] = [str((int(label) + 1) % 4) for label in lines[1::6]]
    Path("turned.txt").write_text("\n".join(lines))
    turned = Path("items.txt")
    Path("turned.txt").rename(turned)
    folder = copied(asked, "study")
    before = study_results(folder).cells[0].tasks[-1]
    progress = run(folder, tiny, english, replace(asked.grid, hellaswag=str(turned)))
    assert (progress.questions_total, progress.cells_total) == (0, 0)
    after = study_results(folder).cells[0].tasks[-1]
    assert (after.task, after.items) == (before.task, before.items)
    assert after.value.mean + before.value.mean <= 1
    assert after != before


def test_cells_that_were_asked_other_items_are_not_compared(asked: Asked, tiny: Path, english: Path) -> None:
    folder = copied(asked, "study")
    other = replace(asked.grid, ranks=(8,), tasks=(), limit=4)
    other = replace(other, **{name: getattr(Grid(), name) for name in ("depths", "places", "needles", "repeats")})
    run(folder, tiny, english, other)
    old, new = study_results(folder).cells
    assert [(task.metric, task.items) for task in old.tasks] == [("found", 2)]
    assert [(task.metric, task.items) for task in new.tasks] == [("acc_norm", 4)]
    row = study_results(folder).rows()[1]
    assert row["hellaswag items.txt acc_norm"] == new.tasks[0].value.mean
    assert row["passkey, 256 tokens, one number found"] is None


def test_a_ledger_from_before_there_were_tasks_is_read_and_brought_up(asked: Asked) -> None:
    folder = copied(asked, "study")
    with sqlite3.connect(folder / LEDGER) as db:
        db.executescript("DROP TABLE replies; PRAGMA user_version = 2;")
    db.close()
    assert study_results(folder).cells[0].status == "done"
    with open_ledger(folder, create=True) as ledger:
        assert ledger.replies("any") == {}
    with sqlite3.connect(folder / LEDGER) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 3
    db.close()


def test_tasks_of_the_harness_in_a_study(tiny: Path, english: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = write_task(Path.cwd(), LETTERS)
    grid = Grid(methods=("none",), quants=("Q8_0",), tasks=("local_letters",), limit=5)
    run(Path("study"), tiny, english, replace(grid, include_path=str(folder)))
    (cell,) = study_results(Path("study")).cells
    assert [(task.task, task.metric, task.items) for task in cell.tasks] == [
        ("local_letters", "acc", 5),
        ("local_letters", "acc_norm", 5),
    ]


def test_tasks_stand_in_a_grid_and_its_file(tmp_path: Path) -> None:
    grid = Grid(methods=("latent",), tasks=("passkey", "piqa"), limit=3, chat_template=True, depths=(512,))
    save_grids(tmp_path / "grid.yaml", [grid], force=False)
    assert load_grids(tmp_path / "grid.yaml") == [grid]
    assert grid_tasks([grid, replace(grid, tasks=["passkey", "piqa"])]).tasks == ("passkey", "piqa")
    for wrong, message in (
        (Grid(tasks="passkey"), "`tasks='passkey'`: expected a list"),
        (Grid(tasks=("passkey",), places=(2.0,)), r"`places=2`: expected a share from 0 to 1"),
        (Grid(tasks=("piqa",), depths=(512,)), "`depths`: is for the task passkey"),
    ):
        with pytest.raises(UsageError, match=message):
            grid_tasks([wrong])
    with pytest.raises(UsageError, match="ask different things"):
        grid_tasks([grid, replace(grid, limit=4)])
    (tmp_path / "wrong.yaml").write_text("tasks: [passkey]\nchat_template: 1\n")
    with pytest.raises(UsageError, match="chat_template: 1 is not what chat_template can be"):
        load_grids(tmp_path / "wrong.yaml")


def test_what_cannot_be_asked_is_told_before_anything_is_written(tiny: Path, embedded: Path) -> None:
    command = ["compare", str(tiny), "-o", "study", "--methods", "none", "--quants", "source,Q8_0", "--threads", "1"]
    for arguments, message in (
        (["--tasks", "passkey", "--depths", "4096"], "--depths 4096: expected 256 to 512 tokens"),
        (["--hellaswag", "missing"], "--hellaswag missing: no such file"),
        (["--depths", "256"], "--depths: is for the task passkey"),
        (["--tasks", "passkey", "--repeats", "0"], "--repeats 0: expected a whole number above 0"),
        (["--tasks", ","], "--tasks: is empty"),
    ):
        result = CliRunner().invoke(cli, [*command, *arguments])
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
        assert message in result.output
    assert not Path("study").exists()


@pytest.mark.parametrize(("width", "spared"), [(200, ""), (80, "gained lost"), (50, "gained lost 95 %")])
def test_a_narrow_terminal_is_spared_columns(
    asked: Asked, width: int, spared: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    results = study_results(asked.folder)
    print_study_tasks(results)
    whole = capsys.readouterr().out
    assert max(map(len, whole.splitlines())) > 80
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_study_tasks(results)
    shown = click.unstyle(capsys.readouterr().out).splitlines()
    assert max(map(len, shown)) <= width
    assert "difference" in shown[2]
    assert [word for word in ("gained", "lost") if word not in shown[2]] == spared.split()[:2]
    assert ("95 %" in shown[2]) == ("95 %" not in spared)
