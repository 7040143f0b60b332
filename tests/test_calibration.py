"""Statistics files: whole or refused, cached, resumed; importance matrices; texts that overlap."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from native.errors import NativeError
from pipeline.calibration.calibrate import calibrate
from pipeline.cli.progress_report import Expected, Steps
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import Text, read_text
from pipeline.observations.contamination import SKETCH_SIZE, contamination_warning, line_sketch, shared_lines
from pipeline.observations.importance_matrix import read_importance_matrix, write_importance_matrix
from pipeline.observations.moments import MomentSums, pack, unpack
from pipeline.observations.statistics_file import (
    Calibration,
    calibration_facts,
    copy_calibration,
    open_calibration,
    require_fit,
    resume_sums,
    write_calibration,
)
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.commands import call
from tests.same_weights import assert_same_weights
from tests.tiny_model import TinyModel, with_number

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def statistics(taken: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(taken, tmp_path / "statistics.gguf"))


def test_a_file_says_whose_statistics_it_holds(statistics: Path, tiny: Path, english: Path) -> None:
    calibration = open_calibration(statistics)
    assert calibration.origin.text_sha256 == read_text(str(english)).sha256
    assert (calibration.origin.chunk_count, calibration.origin.chunk_size) == (2, 512)
    require_fit(calibration, open_gguf(tiny))
    moments = calibration.layer(1)
    assert moments.inputs.shape == moments.received.shape == (64, 64)
    assert np.trace(moments.inputs) == pytest.approx(np.trace(moments.received), rel=1e-3)
    assert np.linalg.eigvalsh(moments.inputs - np.outer(moments.mean, moments.mean)).min() > -1e-4
    assert "None" not in call("inspect", statistics).stdout  # of what a model has


def test_triangles_unpack() -> None:
    matrix = (lambda a: a + a.T)(np.random.default_rng(0).standard_normal((7, 7)))
    np.testing.assert_array_equal(unpack(pack(matrix)), matrix)


def test_statistics_of_another_model_are_refused(statistics: Path, make_tiny: Callable[[TinyModel], Path]) -> None:
    with pytest.raises(UsageError, match=r"is another file .* run surgery calibrate"):
        require_fit(open_calibration(statistics), open_gguf(make_tiny(TinyModel(seed=1))))


def test_statistics_of_another_tokenizer_are_refused(statistics: Path, embedded: Path) -> None:
    with pytest.raises(UsageError, match="has another tokenizer"):
        require_fit(open_calibration(statistics), open_gguf(embedded))


def test_a_truncated_file_is_refused(statistics: Path) -> None:
    for size in (10, 500, statistics.stat().st_size - 100):
        statistics.write_bytes(statistics.read_bytes()[:size])
        with pytest.raises(SurgeryError, match=str(statistics)):
            open_calibration(statistics)


def test_an_edited_file_is_refused(statistics: Path) -> None:
    whole = statistics.read_bytes()
    for place in (whole.index(b"english.txt"), len(whole) - 64, whole.index(b"blk.0.attn_input.sum") + 4):
        edited = bytearray(whole)
        edited[place] ^= 1
        statistics.write_bytes(edited)
        with pytest.raises(SurgeryError, match=r"was edited or damaged|damaged GGUF"):
            open_calibration(statistics)


def test_a_model_is_not_taken_for_statistics(tiny: Path) -> None:
    with pytest.raises(SurgeryError, match="not calibration statistics"):
        open_calibration(tiny)


def test_another_version_of_the_format_is_refused(
    statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = open_calibration(statistics)
    monkeypatch.setattr("pipeline.observations.statistics_file.FORMAT_VERSION", 99)
    with pytest.raises(SurgeryError, match="version 3 of the format, 99 is read"):
        open_calibration(old.path)


def test_a_metric_without_statistics_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs calibration statistics"):
        operate(open_gguf(tiny), tmp_path / "out.gguf", Plan(metric="inputs"))


@pytest.mark.parametrize("method", ["shared-kv", "separate", "random"])
@pytest.mark.parametrize("metric", ["inputs", "attention"])
def test_operating_under_a_metric(statistics: Path, tiny: Path, tmp_path: Path, method: str, metric: str) -> None:
    calibration = open_calibration(statistics)
    plan = Plan(method=method, metric=metric, threshold=None, rank=12, mean="none")
    report = operate(open_gguf(tiny), tmp_path / "out.gguf", plan, calibration=calibration)
    written = open_gguf(tmp_path / "out.gguf")
    for name in ("blk.0.attn_q.weight", "blk.1.attn_q.weight"):
        assert np.linalg.matrix_rank(written.read(name), tol=1e-3) == 12
    assert written.get("surgery.metric") == metric
    assert written.get("surgery.calibration.text_sha256") == calibration.origin.text_sha256
    assert all(0 < group.explained < 1 for group in report.groups)


def test_under_its_metric_a_model_loses_less_than_by_its_weights(statistics: Path, tiny: Path, tmp_path: Path) -> None:
    calibration, model = open_calibration(statistics), open_gguf(tiny)
    moment = calibration.layer(0).inputs
    errors = {}
    for metric in ("weights", "inputs"):
        plan = Plan(metric=metric, targets="q", threshold=None, rank=12, mean="none")
        operate(model, tmp_path / metric, plan, calibration=calibration)
        error = open_gguf(tmp_path / metric).read("blk.0.attn_q.weight") - model.read("blk.0.attn_q.weight")
        errors[metric] = np.sum((error @ moment) * error)
    assert errors["inputs"] < errors["weights"]


def test_progress_says_which_step_of_how_many(
    tiny: Path, english: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cli.progress_report.SECONDS_BETWEEN_PLAIN_LINES", -1)

    def steps(*arguments: Any) -> list[str]:
        lines = call(*arguments, "--force").stderr.splitlines()
        shown = [line.split(":")[1].strip() for line in lines if line.startswith("step ")]
        numbers = [line.split(":")[0] for line in lines if line.startswith("step ")]
        return list(dict.fromkeys(f"{number} {name}" for number, name in zip(numbers, shown, strict=True)))

    text = tmp_path / "short.txt"
    text.write_text(english.read_text()[:4000])
    operation = ("operate", tiny, "-o", tmp_path / "o.gguf", "--rank", "4", "--threads", "1")
    assert steps(*operation) == []  # one step has no number
    assert steps(*operation, "--calibration", text, "--metric", "attention", "--quant", "Q8_0") == [
        f"step 1 of 4 calibrating on {text}",
        "step 2 of 4 probing what errors cost",
        "step 3 of 4 operating",
        "step 4 of 4 quantising",
    ]
    again = steps(*operation, "--calibration", text, "--metric", "inputs")
    assert again == ["step 2 of 2 operating"]  # the statistics are there already
    latent = steps("latent", tiny, "-o", tmp_path / "l.gguf", "--calibration", text, "--threads", "1")
    assert latent == ["step 3 of 4 sampling", "step 4 of 4 converting"]


def test_the_time_that_all_steps_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the pace of what ran: an interrupted step that goes on, one that is passed over, one that is done twice."""
    now = [100.0]
    monkeypatch.setattr("pipeline.cli.progress_report.time.monotonic", lambda: now[0])
    steps = Steps([Expected(10), Expected(20), Expected(30, times=2), Expected(40)])
    first, second = (steps.next(name, unit="units") for name in ("first", "second"))
    assert steps.seconds_left() is None  # nothing is known yet
    first.update(50, 100)
    now[0] += 4
    first.update(70, 100)  # a fifth of 10 in 4 s: 2 s each
    assert steps.seconds_left() == pytest.approx(2 * (3 + 20 + 60 + 40))
    assert steps.described_left() == "(all: 4 min)"
    first.update(100, 100)
    third = steps.next("third", unit="units")
    third.update(0, 4)
    now[0] += 30
    third.update(4, 4)
    assert second.spent() == (0, 0)
    pace = (4 + 30) / (5 + 30)
    assert steps.seconds_left() == pytest.approx(pace * (30 + 40))
    third.update(0, 4)  # on a second text
    now[0] += 15
    third.update(2, 4)
    assert steps.seconds_left() == pytest.approx((4 + 45) / (5 + 45) * (15 + 40))
    third.update(4, 4)
    last = steps.next("last", unit="units")
    assert last.label == "step 4 of 4: last"
    last.update(0, 2)
    now[0] += 1
    last.update(1, 2)
    assert steps.seconds_left() is None  # it says itself how long it takes
    assert steps.described_left() == ""
    assert Steps([Expected(1)], then="comparing").last == "step 2 of 2: comparing"
    assert Steps([], then="comparing").last == "comparing"


def test_calibrating_twice_runs_the_model_once(tiny: Path, english: Path, own_cache: Path) -> None:
    text, heard = read_text(str(english)), []
    for _ in range(2):
        heard.append(0)

        def count(done: float, total: float, note: str) -> None:
            heard[-1] += 1

        calibrate(open_gguf(tiny), text, chunks=2, sensitivities=False, progress=count)
    assert heard[0] > 0
    assert heard[1] == 0
    (kept,) = own_cache.glob("*.gguf")
    kept.write_bytes(b"GGUF damaged")
    assert calibrate(open_gguf(tiny), text, chunks=2, sensitivities=False).path == kept


@pytest.mark.parametrize(
    ("tensor", "seen"),
    [
        ("blk.1.attn_k.weight", "in the attention of layer 1"),
        ("blk.1.ffn_down.weight", "in the inputs of token_embd.weight"),
    ],
)
def test_a_broken_model_has_no_statistics(
    tiny: Path, english: Path, own_cache: Path, tmp_path: Path, tensor: str, seen: str
) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", tensor, np.nan)
    with pytest.raises(NativeError, match=f"broken.gguf: NaN or infinity {seen}"):
        calibrate(open_gguf(broken), read_text(str(english)), chunks=1)
    assert not list(own_cache.iterdir())


def test_statistics_that_another_llama_cpp_took_are_taken_again(
    tiny: Path, english: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = read_text(str(english))
    first = calibrate(open_gguf(tiny), text, chunks=1, sensitivities=False)
    monkeypatch.setattr("pipeline.revision.LLAMA_CPP_VERSION", "0.3.37")
    second = calibrate(open_gguf(tiny), text, chunks=1, sensitivities=False)
    assert second.path != first.path
    assert second.origin.revision.startswith("0.3.37 ")
    assert calibration_facts(first) != calibration_facts(second)


def test_an_interrupted_run_goes_on(tiny: Path, english: Path, own_cache: Path, tmp_path: Path) -> None:
    model, text = open_gguf(tiny), read_text(str(english))
    whole = calibrate(model, text, chunks=3, sensitivities=False)
    partial = calibrate(model, text, chunks=1, sensitivities=False)
    sums = MomentSums(1)
    for layer in (0, 1):
        prefix = f"blk.{layer}.attn_input."
        whats = ("count", "sum", "second_moment", "received")
        sums.inputs[layer] = {"attn_input": {n: partial.file.read(prefix + n) for n in whats}}
    sums.products = partial.products()
    unfinished = whole.path.with_suffix(".unfinished.gguf")
    write_calibration(unfinished, whole.origin, sums, rope="norm", text="", force=True)
    before = whole.path.read_bytes()
    whole.path.unlink()
    heard: list[tuple[float, str]] = []
    again = calibrate(
        model, text, chunks=3, sensitivities=False, progress=lambda done, total, note: heard.append((done, note))
    )
    assert heard[0] == (1, "going on")
    assert not unfinished.exists()
    assert len(before) == again.path.stat().st_size
    np.testing.assert_allclose(again.layer(1).received, whole_moments(before, tmp_path), rtol=1e-4, atol=1e-4)


def whole_moments(data: bytes, folder: Path) -> np.ndarray:
    path = folder / "whole.gguf"
    path.write_bytes(data)
    return open_calibration(path).layer(1).received


def test_unfinished_sums_are_kept_exactly_and_refused_as_statistics(statistics: Path, tmp_path: Path) -> None:
    source = open_calibration(statistics).origin
    rng = np.random.default_rng(0)
    inputs = {"sum": rng.standard_normal(4), "second_moment": rng.standard_normal(10)}
    sums = MomentSums(1, {0: {"attn_input": inputs}})
    sums.products["blk.0.attn_q.weight"] = rng.standard_normal(4), np.array([512])
    path = tmp_path / "unfinished.gguf"
    write_calibration(path, source, sums, rope="norm", text="a text", force=False)
    again = resume_sums(path, source)
    np.testing.assert_array_equal(again.inputs[0]["attn_input"]["second_moment"], inputs["second_moment"])
    np.testing.assert_array_equal(again.products["blk.0.attn_q.weight"][0], sums.products["blk.0.attn_q.weight"][0])
    with pytest.raises(SurgeryError, match="covers 1 of 2 chunks"):
        open_calibration(path)


def test_two_at_once_take_the_statistics_once(tiny: Path, english: Path, own_cache: Path) -> None:
    model, text = open_gguf(tiny), read_text(str(english))
    notes: list[str] = []

    def take(_: int) -> Calibration:
        return calibrate(model, text, chunks=2, progress=lambda done, total, note: notes.append(note))

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(take, range(3)))
    assert len({calibration.path for calibration in found}) == 1
    assert all(calibration.probed for calibration in found)
    assert sorted(set(notes)) == ["", "another process takes them; waiting for it"]
    assert notes.count("") == 3  # 0, 1 and 2 chunks, by one of them
    assert [path.name for path in own_cache.iterdir()] == [found[0].path.name]


def test_what_another_process_writes_anew_is_not_read_at_the_places_of_before(statistics: Path, tmp_path: Path) -> None:
    calibration = open_calibration(statistics)
    before = calibration.layer(1).received
    longer = replace(calibration, origin=replace(calibration.origin, text_name="x" * 1000))
    copy_calibration(longer, tmp_path / "longer.gguf", force=False, sources=())
    os.replace(tmp_path / "longer.gguf", statistics)
    np.testing.assert_array_equal(calibration.layer(1).received, before)


def test_statistics_taken_before_under_another_name_carry_their_text(tiny: Path, english: Path, tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        shutil.copy(english, tmp_path / folder / "t.txt")
    assert call("calibrate", tiny, "--text", "old/t.txt", "--chunks", 2, "--no-probes").exit_code == 0
    shutil.rmtree("old")
    assert call("calibrate", tiny, "--text", "new/t.txt", "--chunks", 2, "-o", "s.gguf").exit_code == 0
    assert open_calibration(Path("s.gguf")).origin.text_name == "new/t.txt"
    shutil.rmtree("new")
    made = call("latent", tiny, "-o", "o.gguf", "--calibration", "s.gguf")
    assert made.exit_code == 0, made.output


def test_a_killed_run_leaves_nothing_under_its_name(embedded: Path, own_cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "statistics.gguf"
    command = [sys.executable, "-m", "pipeline", "calibrate", str(embedded), "-o", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert not output.exists()
    assert all(".unfinished" in path.name for path in own_cache.glob("*")) or not own_cache.exists()


def test_experts_have_a_matrix_and_a_count_each(statistics: Path, tmp_path: Path) -> None:
    name, source = "blk.0.ffn_up_exps.weight", open_calibration(statistics).origin
    sums = MomentSums()
    squares = np.arange(12.0).reshape(3, 4)
    for _ in range(2):
        sums.add(1, {}, {name: (squares, np.array([5, 0, 2])), "blk.0.attn_q.weight": (squares[1], np.array([7]))})
    write_calibration(tmp_path / "s.gguf", source, sums, rope="norm", text="", force=False)
    path = tmp_path / "imatrix.gguf"
    write_importance_matrix(open_calibration(tmp_path / "s.gguf"), path, force=False, sources=())
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert tensors[f"{name}.in_sum2"].shape == (3, 4)
    np.testing.assert_array_equal(tensors[f"{name}.counts"], [[10], [0], [4]])
    read = read_importance_matrix(path)
    np.testing.assert_allclose(read[name], np.r_[squares[0] / 5, np.ones(4), squares[2] / 2])
    np.testing.assert_allclose(read["blk.0.attn_q.weight"], squares[1] / 7)


def test_the_importance_matrix_is_llama_cpps(statistics: Path, tmp_path: Path) -> None:
    calibration: Calibration = open_calibration(statistics)
    path = tmp_path / "imatrix.gguf"
    write_importance_matrix(calibration, path, force=False, sources=())
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    np.testing.assert_array_equal(tensors["blk.0.ffn_down.weight.counts"], [[1024]])
    squares = np.diag(calibration.layer(0).inputs)
    for role in "qkv":
        importance = read_importance_matrix(path)[f"blk.0.attn_{role}.weight"]
        np.testing.assert_allclose(importance, squares, rtol=1e-3)
    assert len(tensors["blk.1.ffn_down.weight.in_sum2"].ravel()) == 96


def test_the_commands_and_the_cache(tiny: Path, english: Path) -> None:
    chosen = ("--metric", "inputs", "--threshold", 0.5, "--calibration")
    first = call("operate", tiny, "-o", "a.gguf", *chosen, english)
    assert first.exit_code == 0, first.output
    assert "calibrating tiny.gguf on" in first.stderr
    made = call(
        "calibrate", tiny, "--text", english, "-o", "s.gguf", "--imatrix-output", "i.gguf", "--no-probes", "--json"
    )
    assert "calibrating" not in made.stderr  # the same statistics are cached
    facts = json.loads(made.stdout)
    assert (facts["model"], facts["statistics"], facts["imatrix"]) == ("tiny.gguf", "s.gguf", "i.gguf")
    second = call("operate", tiny, "-o", "b.gguf", *chosen, "s.gguf")
    assert second.exit_code == 0, second.output
    assert_same_weights(open_gguf(Path("a.gguf")), open_gguf(Path("b.gguf")))
    assert call("quantize", tiny, "q.gguf", "IQ4_NL", "--imatrix", "i.gguf").exit_code == 0
    assert "surgery.calibration.text_sha256" in call("inspect", "a.gguf").output
    unprobed = call("operate", tiny, "-o", "c.gguf", "--metric", "attention", "--calibration", "s.gguf")
    assert "does not say what errors of q, k, v cost; make it with surgery calibrate" in unprobed.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("calibrate", "TINY", "--text", "missing.txt"), "--text missing.txt: no such file"),
        (("calibrate", "TINY", "--text", "TEXT", "--chunks", 0), "--chunks 0"),
        (("calibrate", "TINY", "-o", "no/folder.gguf"), "no/folder.gguf: the folder no does not exist"),
        (("operate", "TINY", "-o", "o.gguf", "--metric", "inputs", "--calibration", "no.txt"), "--calibration no.txt"),
        (("operate", "TINY", "-o", "o.gguf", "--metric", "inputs", "--calibration", "TINY"), "not calibration"),
        (("operate", "TINY", "-o", "o.gguf", "--budget", 2), "--budget 2: expected a share"),
        (("operate", "TINY", "-o", "o.gguf", "--budget", 0.5, "--rank", 3), "--threshold, --rank and --budget"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(
    tiny: Path, english: Path, arguments: tuple[object, ...], said: str
) -> None:
    result = call(*({"TINY": tiny, "TEXT": english}.get(str(a), a) for a in arguments))
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("o.gguf").exists()


LINES = [f"line {i} of a text that is long enough to be told apart from any other" for i in range(3000)]


def test_shared_lines_are_estimated_from_a_sketch() -> None:
    sketch = line_sketch("\n".join(LINES))
    assert len(sketch) == SKETCH_SIZE
    assert shared_lines(sketch, "\n".join(LINES)) == 1
    other = [line.replace("text", "book") for line in LINES]
    assert shared_lines(sketch, "\n".join(other)) == 0
    assert shared_lines(sketch, "\n".join(LINES[:1500] + other[1500:])) == pytest.approx(0.5, abs=0.06)
    assert shared_lines(line_sketch("\n".join(LINES[:10])), "\n".join(LINES[:100])) == pytest.approx(0.1)


def test_eval_warns_when_texts_overlap(statistics: Path, tiny: Path, tmp_path: Path, english: Path) -> None:
    plan = Plan(metric="inputs", threshold=None, rank=5)
    operate(open_gguf(tiny), tmp_path / "out.gguf", plan, calibration=open_calibration(statistics))
    operated, text = open_gguf(tmp_path / "out.gguf"), read_text(str(english))
    assert "was calibrated on" in str(contamination_warning(operated, text))
    assert contamination_warning(operated, Text("other", "\n".join(LINES))) is None
    assert contamination_warning(open_gguf(tiny), text) is None


def test_the_two_halves_of_the_python_text_do_not_overlap() -> None:
    halves = read_text("python-docs-calibration"), read_text("python-docs")
    assert shared_lines(line_sketch(halves[0].content), halves[1].content) < 0.01


def test_a_checkpoint_must_be_converted_first(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    result = call("operate", "checkpoint", "-o", "o.gguf", "--metric", "inputs")
    assert result.exit_code == 2
    assert "surgery convert checkpoint checkpoint.gguf" in result.stderr


def test_sums_beyond_what_memory_should_hold_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    parts = [{layer: {"attn_input": {"second_moment": np.cov(rng.random((5, 9)))}} for layer in range(2)} for _ in "ab"]
    whole = MomentSums()
    for part in parts:
        whole.add(1, part, {})
    monkeypatch.setattr("pipeline.observations.moments.MOST_IN_MEMORY", 130)
    mapped = MomentSums()
    for part in parts:
        mapped.add(1, part, {})
    found = [sums.inputs[1]["attn_input"]["second_moment"] for sums in (whole, mapped)]
    assert [type(each) for each in found] == [np.ndarray, np.memmap]
    expected = sum((part[1]["attn_input"]["second_moment"] for part in parts), np.zeros((5, 5)))
    for sums in found:
        np.testing.assert_array_equal(sums, pack(expected))
