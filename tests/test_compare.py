"""Studies of a tiny random model: the grid, the run, what is resumed, and numbers equal to those of `surgery eval`."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import gguf
import pytest
from click.testing import CliRunner

from native.model import ContextOptions
from pipeline.cli.main import cli
from pipeline.cli.study_table import show_study
from pipeline.compare.cell import Cell, StudySubject, base_key, effective_plan, text_key
from pipeline.compare.commands import cell_commands
from pipeline.compare.found import CellResult, StudyResult
from pipeline.compare.grid import Grid, grid_cells
from pipeline.compare.ledger import LEDGER, known_texts, make_folder, open_ledger, sole_writer
from pipeline.compare.measuring import StopRule
from pipeline.compare.results import study_results
from pipeline.compare.run import StudyProgress, run_study
from pipeline.compare.study import Study, StudySettings, open_study
from pipeline.errors import SurgeryError, UsageError
from pipeline.evaluation.evaluate import evaluate
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import Text, read_text
from pipeline.latent.plan import LatentPlan
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.quantization import quantize
from tests.tiny_model import TinyModel, write_tiny_model

SCORES = (
    "ppl", "ppl_se", "ppl_low", "ppl_high", "ppl_se_tokens",
    "kld_mean", "kld_se", "kld_low", "kld_high", "kld_se_tokens", "kld_median", "kld_p99", "same_top",
)  # fmt: skip
GRID = Grid(methods=("shared-kv",), thresholds=(0.9, 0.6), quants=("source", "Q8_0"))


def run(folder: Path, model: Path, text: Path, grid: Grid = GRID, **settings: Any) -> StudyProgress:
    options = StudySettings((read_text(str(text)),), **{"chunks": 3, "n_ctx": 64, "answer_tokens": 12, **settings})
    with open_study(folder, open_gguf(model), options) as study:
        return run_study(study, grid_cells([grid]), lambda progress: None)


def cell_of(results: StudyResult, label: str) -> CellResult:
    return next(cell for cell in results.cells if cell.label == label)


@pytest.fixture(scope="module")
def study(tiny: Path, english: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; treat it as read-only."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    run(folder, tiny, english)
    return folder


def test_numbers_are_those_of_operating_quantising_and_evaluating_by_hand(
    study: Path, tiny: Path, english: Path, tmp_path: Path
) -> None:
    model, text = open_gguf(tiny), read_text(str(english))
    operate(model, tmp_path / "o.gguf", Plan(threshold=0.6))
    quantize(open_gguf(tmp_path / "o.gguf"), tmp_path / "q.gguf", "Q8_0")
    options = ContextOptions(n_ctx=64)
    results = study_results(study)
    for path, label in ((tmp_path / "o.gguf", "shared-kv 0.6"), (tmp_path / "q.gguf", "shared-kv 0.6, Q8_0")):
        expected = evaluate(path, text, base=tiny, chunks=3, options=options)
        cell = cell_of(results, label)
        for name in SCORES:
            assert getattr(cell, name) == getattr(expected, name), name
        assert cell.file_bytes == path.stat().st_size
        assert cell.kv_cache_bytes == pytest.approx(expected.kv_cache_bytes, abs=2**20 / 100)  # as it is logged
    assert results.base.ppl == expected.base_ppl


def test_a_finished_study_says_what_was_measured_and_leaves_no_scratch(study: Path) -> None:
    results = study_results(study)
    assert [cell.status for cell in results.cells] == ["done"] * 5
    assert {cell.label for cell in results.cells} == {
        "source, Q8_0", "shared-kv 0.9", "shared-kv 0.9, Q8_0", "shared-kv 0.6", "shared-kv 0.6, Q8_0",
    }  # fmt: skip
    cell = cell_of(results, "shared-kv 0.6, Q8_0")
    assert cell.kld_low <= cell.kld_mean <= cell.kld_high
    assert cell.interaction
    assert cell.interaction.low <= cell.interaction.ratio <= cell.interaction.high
    assert cell.ranks is not None
    assert len(cell.ranks) == 4
    assert all(rank.rank <= rank.full_rank for rank in cell.ranks)
    assert cell.answer is not None
    assert len(cell.answer) <= 12
    assert None not in (cell.dense, cell.factors, cell.file_bytes)
    saved = ((cell.dense or 0) - (cell.factors or 0)) * 34 / 32  # bytes a number of Q8_0
    assert cell.factored_bytes == pytest.approx((cell.file_bytes or 0) - saved, abs=1)
    assert not list((study / "work" / "operated").iterdir())
    assert not list((study / "work" / "cells").iterdir())


def test_a_finished_study_measures_nothing_again(study: Path, tiny: Path, english: Path) -> None:
    progress = run(study, tiny, english)
    assert (progress.chunks_total, progress.cells_total) == (0, 0)


def test_more_chunks_and_more_cells_add_to_what_is_there(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    run(folder, tiny, english, replace(GRID, thresholds=(0.9,), quants=("source",)), chunks=2)
    progress = run(folder, tiny, english, replace(GRID, quants=("source",)), chunks=3)
    assert (progress.chunks_total, progress.cells_total) == (1 + 1 + 3, 2)  # the source, the old cell, the new one
    assert [cell.chunks for cell in study_results(folder).cells] == [3, 3]
    assert cell_of(study_results(folder), "shared-kv 0.9").kld_mean > 0


class Interrupted(Exception):
    pass


def test_an_interrupted_study_goes_on_where_it_was(study: Path, tiny: Path, english: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    settings = StudySettings((read_text(str(english)),), chunks=3, n_ctx=64, answer_tokens=12)
    seen: list[int] = []

    def interrupt(progress: StudyProgress) -> None:
        seen.append(progress.chunks_done)
        if progress.chunks_done == 5:
            raise Interrupted

    cells = grid_cells([GRID])
    with pytest.raises(Interrupted), open_study(folder, open_gguf(tiny), settings) as opened:
        run_study(opened, cells, interrupt)
    assert max(seen) == 5
    progress = run(folder, tiny, english)
    assert progress.chunks_total == 18 - 5
    mine, whole = study_results(folder), study_results(study)
    for cell in whole.cells:
        assert cell_of(mine, cell.label).kld_mean == cell.kld_mean


def test_a_killed_process_loses_a_chunk_at_the_most(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    command = [
        sys.executable, "-m", "pipeline", "compare", str(tiny), "-o", str(folder), "--text", str(english),
        "--thresholds", "0.9", "--methods", "shared-kv", "--quants", "source", "--ctx", "8", "--chunks", "400",
        "--answer-tokens", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (folder / LEDGER).exists() or measured(folder) < 410:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = measured(folder)
    assert 410 <= before < 800
    assert cell_of(study_results(folder), "shared-kv 0.9").status == "pending"
    left_behind = folder / "work" / "cells" / "cell-killed"
    left_behind.mkdir(exist_ok=True)
    result = CliRunner().invoke(cli, [*command[3:], "--json"])
    assert result.exit_code == 0, result.output
    assert [cell["chunks"] for cell in json.loads(result.stdout)["cells"]] == [400]
    assert not left_behind.exists()


def measured(folder: Path) -> int:
    """All chunks in the ledger, read while another process writes it."""
    try:
        with open_ledger(folder) as ledger:
            facts = ledger.facts()
            keys = [*ledger.cells().values(), base_key(subject(facts))] if facts else []
            return sum(ledger.chunk_count(text_key(key, text)) for key in keys for text in known_texts(facts))
    except UsageError:
        return 0  # not laid out yet


def subject(facts: dict[str, Any]) -> StudySubject:
    return StudySubject(**{name: facts[name] for name in StudySubject.__dataclass_fields__})


def test_two_processes_do_not_share_a_study(study: Path, tiny: Path, english: Path) -> None:
    with sole_writer(study), pytest.raises(UsageError, match=r"another process .* is measuring there"):
        run(study, tiny, english)
    assert study_results(study).cells  # reading goes on


def test_a_study_is_of_one_model_one_text_and_one_context(
    study: Path, tiny: Path, wide: Path, english: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is a study of another model"):
        run(study, wide, english)
    other = tmp_path / "other.txt"
    other.write_text(english.read_text() * 2)
    with pytest.raises(UsageError, match="is a study of another text"):
        run(study, tiny, other)
    with pytest.raises(UsageError, match=r"`n_ctx=32`: .* was measured with 64"):
        run(study, tiny, english, n_ctx=32)


def test_ledgers_that_cannot_be_read_are_left_as_they_are(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    run(folder, tiny, english, replace(GRID, thresholds=(0.9,), quants=("source",)))
    content = (folder / LEDGER).read_bytes()
    for damaged, message in (
        (b"not a database" * 100, "damaged or not a ledger"),
        (content[:60] + b"\0\0\0\x09" + content[64:], "newer version"),
        (content[:68] + b"\0\0\0\x01" + content[72:], "another program's"),
    ):
        (folder / LEDGER).write_bytes(damaged)
        with pytest.raises(SurgeryError, match=message):
            run(folder, tiny, english)
        assert (folder / LEDGER).read_bytes() == damaged


def test_a_cell_that_fails_is_told_and_the_others_go_on(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    grid = replace(GRID, thresholds=(0.9,), quants=("source",), cache_types=("f16", "q4_0"))  # heads of 16: no q4_0
    progress = run(folder, tiny, english, grid)
    assert len(progress.failures) == 2
    results = study_results(folder)
    assert cell_of(results, "shared-kv 0.9").status == "done"
    failed = cell_of(results, "shared-kv 0.9, cache q4_0")
    assert failed.status == "failed"
    assert failed.reason is not None
    assert failed.reason in progress.failures[1]
    assert str(folder) not in failed.reason  # its file is gone
    assert run(folder, tiny, english, grid).cells_total == 2  # a failed cell is tried again


def test_a_chat_template_that_fails_costs_the_answers_alone(english: Path, tmp_path: Path) -> None:
    broken = {"tokenizer.chat_template": ("{{ raise_exception('no') }}", gguf.GGUFValueType.STRING)}
    model = write_tiny_model(tmp_path / "broken.gguf", metadata=broken)
    run(
        tmp_path / "study",
        model,
        english,
        Grid(methods=("shared-kv",), thresholds=(0.9,), quants=("source",)),
        chunks=2,
    )
    shown = CliRunner().invoke(cli, ["compare", "--status", str(tmp_path / "study")]).stdout
    assert "\nno answer from 1 of 1 cell: its chat template (tokenizer.chat_template) fails: no\n" in shown
    [cell] = study_results(tmp_path / "study").cells
    assert (cell.status, cell.answer) == ("done", None)
    assert cell.kld_mean > 0


def test_stop_rules() -> None:
    steady, wild = [0.5, 0.51, 0.49, 0.5], [0.1, 2.0, 0.1, 2.0]
    assert StopRule().reason(steady) is None
    assert StopRule(above=0.4).reason(steady[:1]) is None
    assert StopRule(above=0.4).reason(steady) == "KL divergence above 0.4"
    assert StopRule(above=0.4).reason(wild) is None
    assert StopRule(precision=0.05).reason(steady[:3]) is None
    assert StopRule(precision=0.05).reason(steady) == "standard error within 5.0%"
    assert StopRule(precision=0.05).reason(wild) is None
    assert StopRule(precision=0.05).reason([0.0] * 4)


def test_a_hopeless_cell_is_stopped_and_goes_on_without_the_rule(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    grid = replace(GRID, thresholds=(0.3,), quants=("source",))
    run(folder, tiny, english, grid, chunks=6, rule=StopRule(above=1e-9))
    cell = study_results(folder).cells[0]
    assert cell.status == "stopped"
    assert cell.chunks < 6
    assert cell.answer
    run(folder, tiny, english, grid, chunks=6)
    assert study_results(folder).cells[0].chunks == 6


def test_cells_that_do_the_same_are_measured_once(tiny: Path, english: Path, tmp_path: Path) -> None:
    methods, targets = ("shared-kv", "shared-gate-up"), ("kv", "gate+up")
    grid = Grid(methods=methods, targets=targets, thresholds=(0.9, 1.0), quants=("source",))
    assert effective_plan(Plan(threshold=1)) is None
    assert effective_plan(Plan(threshold=1, mean="drop")) is not None
    progress = run(tmp_path / "study", tiny, english, grid)
    assert progress.cells_total == 4  # of eight; both do the same to k and v, and at threshold 1 all are the source
    cells = study_results(tmp_path / "study").cells
    assert [cell.kld_mean == 0 for cell in cells] == [False, True] * 4


def test_the_commands_of_a_cell_make_its_file(study: Path, tiny: Path, tmp_path: Path) -> None:
    calibrated = Cell(Plan(threshold=0.25, metric="inputs", method="separate", targets="kv"), "Q8_0", "q8_0")
    assert cell_commands(calibrated, "my model.gguf", "book.txt") == [
        "surgery operate 'my model.gguf' -o cell.gguf --method separate --targets kv --threshold 0.25 --metric inputs"
        " --calibration book.txt --quant Q8_0",
        "surgery run cell.gguf --cache-type-k=q8_0 --cache-type-v=q8_0",
    ]
    budget = Plan(threshold=None, budget=0.5)
    assert cell_commands(Cell(budget), "m.gguf", None)[0] == "surgery operate m.gguf -o cell.gguf --budget 0.5"
    latent = cell_commands(Cell(LatentPlan(cache=0.25), "Q8_0"), "m.gguf", "book.txt")
    assert latent[:2] == [
        "surgery latent m.gguf -o between.gguf --cache 0.25 --calibration book.txt",
        "surgery quantize between.gguf cell.gguf Q8_0",
    ]
    assert cell_commands(Cell(None), "m.gguf", None) == ["surgery run m.gguf"]
    (operate_it, _) = cell_commands(Cell(Plan(threshold=0.6), "Q8_0"), str(tiny), None)
    assert CliRunner().invoke(cli, shlex.split(operate_it)[1:]).exit_code == 0
    assert Path("cell.gguf").stat().st_size == cell_of(study_results(study), "shared-kv 0.6, Q8_0").file_bytes


def test_the_command(study: Path, tiny: Path, english: Path, tmp_path: Path) -> None:
    invoke = CliRunner().invoke
    status = invoke(cli, ["compare", "--status", str(study)])
    assert status.exit_code == 0
    assert "shared-kv 0.6, Q8_0" in status.stdout
    planned = [
        "compare",
        str(tiny),
        "--text",
        str(english),
        "--ctx",
        "64",
        "--thresholds",
        "0.9",
        "--dry-run",
        "--json",
    ]
    estimate = json.loads(invoke(cli, planned).stdout)
    assert [cell["label"] for cell in estimate["cells"]][:2] == ["source, Q4_K_M", "shared-kv 0.9"]
    assert estimate["seconds"] > 0
    for arguments, message in (
        ([], "name the MODEL"),
        ([str(tiny)], "-o: name a folder"),
        ([str(tiny), "--thresholds", ","], "--thresholds: is empty"),
        ([str(tiny), "--thresholds", "1.5"], "--thresholds 1.5: expected"),
        ([str(tiny), "--quants", "Q9"], "--quants Q9"),
        ([str(tiny), "--ranks", "9999", "-o", "s"], "--ranks 9999: q of layer 0 has 64 components"),
        ([str(tiny), "--layers", "9", "-o", "s"], "--layers '9'"),
        ([str(tiny), "--preset", "quick", "--plan", "x"], "one of --preset and --plan"),
        (["--status", "missing"], "holds no study"),
    ):
        result = invoke(cli, ["compare", *arguments])
        assert result.exit_code == 2, arguments
        assert message in result.output
        assert len(result.output.splitlines()) == 1
    assert not Path("s").exists()


def test_a_narrow_terminal_has_what_was_lost_and_for_how_many_bytes(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show_study(study_results(study), as_json=False)
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith("cell "))
    assert lines[number].split() == ["cell", "KL", "divergence", "95", "%", "interval", "MB"]
    assert max(map(len, lines[number : number + 7])) <= 60


def test_latent_attention_is_one_more_method(english: Path, tmp_path: Path) -> None:
    """Its files are other models, quantised whole; calibrated, made for the cache of their cell, beside other methods."""
    folder = tmp_path / "study"
    model, whole = tmp_path / "model.gguf", tmp_path / "heads-of-32.gguf"
    quantize(open_gguf(write_tiny_model(whole, TinyModel(key_length=32, value_length=32))), model, "Q8_0")

    def compare(*choices: str) -> dict[str, Any]:
        command = [
            "compare", str(model), "-o", str(folder), "--text", str(english), "--calibration", "python-docs-calibration",
            "--caches", "0.75", "--ctx", "64", "--chunks", "2", "--answer-tokens", "4", "--json", *choices
        ]  # fmt: skip
        result = CliRunner(env={"SURGERY_CACHE": str(tmp_path)}).invoke(cli, command)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    results = compare("--methods", "latent,shared-kv", "--thresholds", "0.9", "--quants", "source,q8_0")
    cells = {cell["label"]: cell for cell in results["cells"]}
    plain, quantised = cells["latent 0.75"], cells["latent 0.75, Q8_0"]
    assert (plain["method"], plain["cache"]) == ("latent", 0.75)
    assert plain["kv_cache_bytes"] < results["base"]["kv_cache_bytes"]
    assert quantised["file_bytes"] < plain["file_bytes"]
    assert quantised["interaction"]["verdict"]

    results = compare("--methods", "latent", "--quants", "source", "--cache-types", "q8_0,iq4_nl")
    cells = {cell["label"]: cell for cell in results["cells"]}
    assert all(cells[f"latent 0.75, cache {kind}"]["status"] == "done" for kind in ("q8_0", "iq4_nl"))
    assert cells["latent 0.75, cache iq4_nl"]["commands"] == [
        f"surgery latent {model} -o cell.gguf --cache 0.75 --cache-type iq4_nl --calibration python-docs-calibration",
        "surgery run cell.gguf --cache-type-k=iq4_nl --cache-type-v=iq4_nl",
    ]
    assert cells["latent 0.75, cache iq4_nl"]["interaction"]["verdict"]  # beside the latent that is made for F16
    results = compare("--methods", "latent,transmla", "--quants", "source", "--outtypes", "keep")
    cells = {cell["label"]: cell for cell in results["cells"]}
    kept, published = cells["latent 0.75 keep"], cells["transmla 0.75 keep"]
    assert (published["status"], published["kv_cache_bytes"]) == ("done", kept["kv_cache_bytes"])
    assert published["commands"][0].startswith(f"surgery latent {model} -o cell.gguf --method transmla --cache 0.75")
    assert (kept["status"], kept["outtype"], kept["kv_cache_bytes"]) == ("done", "keep", plain["kv_cache_bytes"])
    assert kept["file_bytes"] < plain["file_bytes"]
    with open_ledger(folder) as ledger:
        made = {c.label: (ledger.run(key).facts or {}).get("operation") for c, key in ledger.cells().items()}
    assert made["latent 0.75, cache q8_0"] == made["latent 0.75"]
    assert made["latent 0.75, cache iq4_nl"] != made["latent 0.75"]
    assert LatentPlan(cache_type="iq4_nl").effective() == LatentPlan(cache_type="q4_0").effective()


def test_a_latent_of_an_older_study_says_that_it_was_made_for_another_cache() -> None:
    assert Cell(LatentPlan(cache=192), cache_type="q4_0").label == "latent 192 for another cache, cache q4_0"
    assert Cell(LatentPlan(cache=192), cache_type="q8_0").label == "latent 192, cache q8_0"
    assert Cell(LatentPlan(cache=192, cache_type="iq4_nl"), cache_type="q4_0").label == "latent 192, cache q4_0"


def test_force_rerun_measures_the_cells_of_this_grid_again(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    run(folder, tiny, english, replace(GRID, quants=("source",)), chunks=2)
    command = [
        "compare", str(tiny), "-o", str(folder), "--text", str(english), "--thresholds", "0.9", "--methods", "shared-kv",
        "--quants", "source", "--ctx", "64", "--chunks", "2", "--answer-tokens", "12", "--force-rerun", "--json",
    ]  # fmt: skip
    before = study_results(folder).cells
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    after = json.loads(result.stdout)["cells"]
    assert [cell["kld_mean"] for cell in after] == [cell.kld_mean for cell in before]
    seconds = {cell.label: cell.seconds for cell in before}
    assert [cell["seconds"] != seconds[cell["label"]] for cell in after] == [True, False]


def test_an_operation_that_fails_fails_its_cells_alone(
    tiny: Path, english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def operate(self: Study, cells: list[Cell]) -> None:
        raise SurgeryError("no space left")

    monkeypatch.setattr(Study, "operate", operate)
    progress = run(tmp_path / "study", tiny, english)
    assert len(progress.failures) == 4
    assert progress.failures[0] == "shared-kv 0.9: no space left"
    statuses = [(cell.label, cell.status) for cell in study_results(tmp_path / "study").cells]
    assert [status for _, status in statuses] == ["done", "failed", "failed", "failed", "failed"]


def test_a_study_that_cannot_be_written_names_its_option(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # root may write in a read-only folder, but not this
    for folder, message in ((Path("/proc/study"), "name another folder"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"`folder` {folder}: cannot be written: .*{message}"):
            make_folder(folder)


def test_a_text_that_is_added_is_all_that_is_measured(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder, grid = tmp_path / "study", replace(GRID, thresholds=(0.6,), quants=("source",))
    one, other = read_text(str(english)), Text("other", read_text(str(english)).content[::-1])

    def measure(*texts: Text) -> StudyProgress:
        settings = StudySettings(texts, chunks=2, n_ctx=64, answer_tokens=4)
        with open_study(folder, open_gguf(tiny), settings) as study:
            return run_study(study, grid_cells([grid]), lambda progress: None)

    measure(one)
    alone = study_results(folder).cells[0]
    assert measure(one, other).chunks_total == 2 + 2  # the source's and the cell's, on the other text
    cell = study_results(folder).cells[0]
    assert cell.texts[0] == alone.texts[0]
    assert (cell.answer, cell.status) == (alone.answer, "done")
    operate(open_gguf(tiny), tmp_path / "o.gguf", Plan(threshold=0.6))
    expected = evaluate(tmp_path / "o.gguf", [one, other], base=tiny, chunks=2, options=ContextOptions(n_ctx=64))
    for name in SCORES:
        assert getattr(cell, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
        assert getattr(cell.texts[1], name) == pytest.approx(getattr(expected.texts[1], name), rel=1e-6), name
    assert cell.worst == expected.worst
    assert measure(other).chunks_total == 0
    third = Text("third", "so " + one.content)
    with pytest.raises(UsageError, match="is a study of another text"):
        measure(third)
    measure(other, third)
    cell = study_results(folder).cells[0]
    assert (cell.status, len(cell.texts)) == ("done", 3)


def test_a_cell_that_lacks_a_text_is_not_compared(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder, grid = tmp_path / "study", replace(GRID, quants=("source",))
    run(folder, tiny, english, grid, chunks=2)
    texts = (read_text(str(english)), Text("other", read_text(str(english)).content[::-1]))
    with open_study(folder, open_gguf(tiny), StudySettings(texts, chunks=2, n_ctx=64, answer_tokens=12)) as study:
        run_study(study, grid_cells([replace(grid, thresholds=(0.6,))]), lambda progress: None)
    lacking, whole = study_results(folder).cells
    assert (lacking.status, lacking.reason) == ("pending", "not measured on other")
    assert lacking.pareto == ()
    assert whole.status == "done"
    assert whole.pareto


def test_another_prompt_is_answered_anew_and_nothing_else(tiny: Path, english: Path, tmp_path: Path) -> None:
    folder, grid = tmp_path / "study", replace(GRID, thresholds=(0.6,), quants=("source",))
    run(folder, tiny, english, grid, chunks=2)
    before = study_results(folder)
    progress = run(folder, tiny, english, grid, chunks=2, prompt="Which words are common in English, and why?")
    assert (progress.chunks_total, progress.cells_total) == (0, 1)
    after = study_results(folder)
    assert after.cells[0].texts == before.cells[0].texts
    assert (after.base.answer, after.cells[0].answer) != (before.base.answer, before.cells[0].answer)


def test_numbers_are_not_reused_when_what_made_them_has_changed(
    tiny: Path, english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, grid = tmp_path / "study", replace(GRID, thresholds=(0.6,), quants=("source",))
    run(folder, tiny, english, grid, chunks=2)
    made = study_results(folder).cells[0].made_with
    assert made is not None
    assert set(made["revisions"]) == {"scores", "operation"}
    before = study_results(folder).cells
    monkeypatch.setattr("pipeline.revision.LLAMA_CPP_VERSION", "0.3.37")
    assert study_results(folder).cells == before
    assert run(folder, tiny, english, grid, chunks=2).chunks_total == 2 + 2  # the source's and the cell's


def test_a_ledger_that_does_not_know_what_its_numbers_came_from_is_refused(
    study: Path, tiny: Path, english: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    content = (study / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(content[:60] + b"\0\0\0\x01" + content[64:])
    for read in (lambda: run(folder, tiny, english), lambda: study_results(folder)):
        with pytest.raises(SurgeryError, match=r"older version of surgery.*name another folder"):
            read()
