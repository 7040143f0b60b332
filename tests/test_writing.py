"""Text that a model writes: drawn from its distribution, the same for the same seed, whole after an interruption."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from native.errors import NativeError
from native.model import ContextOptions, load_model
from native.writing import BLOCK, WritingOptions, WrittenWave, sample, write_waves
from pipeline.calibration import obtain, self_text
from pipeline.calibration.obtain import CalibrationWatch, obtain_calibration, written_text
from pipeline.calibration.self_text import RECIPE, Row, TooSlow, coherent_row, ledger_path, read_waves, write_self_text
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.inputs.texts import read_text
from pipeline.observations.contamination import contamination_warning
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.commands import call
from tests.tiny_model import TinyModel, byte_vocabulary, with_number

END = len(byte_vocabulary()) - 1


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def model(tiny: Path) -> GGUFModel:
    return open_gguf(tiny)


def waves_of(path: Path, rows: int, done: Sequence[tuple[int, int]] = (), **options: object) -> list[WrittenWave]:
    writing = WritingOptions(**{"tokens": 24, **options})  # type: ignore[arg-type]
    events = write_waves(str(path), rows, done, writing, ContextOptions(threads=1))
    return [event for event in events if isinstance(event, WrittenWave)]


def saying(tiny: Path, path: Path, logits: dict[int, float]) -> Path:
    """A copy of the tiny model that gives these logits to these tokens, and 0 to all others, whatever it reads."""
    path.write_bytes(tiny.read_bytes())
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path, "r+").tensors}
    for name, values in tensors.items():
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            values[:] = 0  # so that a token's own embedding is all that reaches the output
    embeddings = tensors["token_embd.weight"]
    width = embeddings.shape[1]
    embeddings[:] = 0
    embeddings[:, 0] = 1.0
    for token, logit in logits.items():
        embeddings[token, 0] = 1.0 + logit / np.sqrt(width)
    return path


@pytest.mark.parametrize("size", [3, BLOCK, BLOCK + 1, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_token_is_drawn_by_inverting_the_cumulative_distribution(size: int, temperature: float) -> None:
    rng = np.random.default_rng(size)
    scores = (2 * rng.standard_normal(size)).astype(np.float32)
    barred = np.array([0, size - 1])
    probabilities = np.exp(scores.astype(float) / temperature)
    probabilities[barred] = 0
    uniforms = [*rng.random(500), 0.0, np.nextafter(1.0, 0.0)]
    expected = np.searchsorted(np.cumsum(probabilities / probabilities.sum()), uniforms[:500], side="right")
    work = np.empty(size, np.float32)
    drawn, nats = zip(*(sample(scores, temperature, uniform, barred, work) for uniform in uniforms), strict=True)
    np.testing.assert_allclose(nats, -np.log((probabilities / probabilities.sum())[[*drawn]]), rtol=1e-4, atol=1e-6)
    assert np.mean(np.array(drawn[:500]) == expected) > 0.99  # single precision may decide otherwise at a boundary
    assert not set(drawn) & set(barred.tolist())


def test_what_is_written_has_the_models_own_frequencies(tiny: Path, tmp_path: Path) -> None:
    path = saying(tiny, tmp_path / "saying.gguf", {97: 6.0, 98: 5.0})
    (wave,) = waves_of(path, 16, tokens=128, passages=(128,))
    drawn = np.array([row[1:] for row in wave.tokens]).ravel()  # without the first, which any token may be
    with load_model(str(path)) as loaded:
        probabilities = np.exp([6.0 if t == 97 else 5.0 if t == 98 else 0.0 for t in range(loaded.n_vocab - 1)])
    expected = probabilities / probabilities.sum()
    for token in (97, 98):
        assert np.mean(drawn == token) == pytest.approx(expected[token], abs=5 * np.sqrt(0.25 / len(drawn)))


def test_the_same_seed_writes_the_same_and_another_something_else(tiny: Path) -> None:
    first, second, other = waves_of(tiny, 3), waves_of(tiny, 3), waves_of(tiny, 3, seed=1)
    assert first == second
    assert first[0].tokens != other[0].tokens
    assert [len(row) for row in first[0].tokens] == [24] * 3
    assert len({tuple(row) for row in first[0].tokens}) == 3


def test_waves_that_are_done_are_not_written_again(tiny: Path) -> None:
    whole = waves_of(tiny, 34)
    assert [(wave.first, len(wave.texts)) for wave in whole] == [(0, 32), (32, 2)]
    assert waves_of(tiny, 34, done=[(0, 32)]) == whole[1:]


def test_a_passage_that_ends_makes_room_for_the_next(tiny: Path, tmp_path: Path) -> None:
    path = saying(tiny, tmp_path / "ending.gguf", {END: 4.0})
    (wave,) = waves_of(path, 4)
    assert all(len(row) == 24 and END not in row for row in wave.tokens)
    assert all("\n\n" in text for text in wave.texts)


def test_rows_take_turns_in_how_long_their_passages_are(tiny: Path, tmp_path: Path) -> None:
    path = saying(tiny, tmp_path / "saying.gguf", {97: 6.0, 98: 5.0})
    (wave,) = waves_of(path, 4, passages=(8, 1000))
    assert [text.count("\n\n") for text in wave.texts] == [2, 0, 2, 0]
    assert waves_of(path, 34, passages=(8, 1000), done=[(0, 32)])[0].texts[0].count("\n\n") == 2


def test_a_model_that_ends_at_once_is_named(tiny: Path, tmp_path: Path) -> None:
    path = saying(tiny, tmp_path / "silent.gguf", {END: 40.0})
    with pytest.raises(NativeError, match=r"silent\.gguf: ends every text at once"):
        waves_of(path, 2, tokens=64)


def test_a_broken_model_writes_nothing(tiny: Path, tmp_path: Path, own_cache: Path) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", "blk.1.attn_k.weight", np.nan)
    with pytest.raises(NativeError, match=r"broken\.gguf: the largest logit is nan"):
        write_self_text(open_gguf(broken), chunks=1)
    assert not list(own_cache.iterdir())


def test_a_model_that_repeats_one_token_is_refused(tiny: Path, tmp_path: Path, own_cache: Path) -> None:
    path = saying(tiny, tmp_path / "stuck.gguf", {120: 40.0})
    with pytest.raises(SurgeryError, match=r"stuck\.gguf: writes one token over and over .*token 120"):
        write_self_text(open_gguf(path), chunks=1)
    assert not list(own_cache.iterdir())


def test_a_long_passage_is_probed_not_the_middle_of_what_was_written(model: GGUFModel) -> None:
    text = write_self_text(model, chunks=3)
    rows = text.content.split(text.coherent or "?")
    assert [bool(each) for each in rows] == [True, True]  # it is the second of three
    short, long = len(rows[0].split("\n\n")), len((text.coherent or "").split("\n\n"))
    assert long < short
    assert write_self_text(model, chunks=1).coherent == rows[0].strip("\n")  # there is no other


def test_what_is_probed_is_likely_and_does_not_repeat_itself() -> None:
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "nobody",
        "looks",
        "at",
        "what",
        "it",
        "does",
        "with",
        "its",
        "bone",
    ]
    sentence = " ".join(words)
    long = [Row(sentence, 90.0), Row(sentence, 60.0), Row("bone " * 400, 60.0), Row(sentence[:40], 60.0)]
    rows = [row for each in long for row in (Row(sentence, 1.0), each)]
    assert coherent_row(rows) == long[1]
    assert coherent_row(rows[:1]) == rows[0]


def test_a_row_knows_how_likely_it_is(tiny: Path, tmp_path: Path) -> None:
    path = saying(tiny, tmp_path / "saying.gguf", {97: 6.0, 98: 5.0})
    (wave,) = waves_of(path, 2, tokens=64, passages=(64,))
    with load_model(str(path)) as loaded:
        scores = np.array([6.0 if t == 97 else 5.0 if t == 98 else 0.0 for t in range(loaded.n_vocab - 1)])
    nats = np.log(np.exp(scores).sum()) - scores
    assert wave.nats == pytest.approx([nats[row[1:]].sum() for row in wave.tokens], rel=1e-3)


def test_a_text_is_kept_and_a_longer_one_begins_with_it(model: GGUFModel) -> None:
    heard: list[tuple[float, float, str]] = []
    first = write_self_text(model, chunks=1, progress=lambda *now: heard.append(now))
    assert heard[-1][:2] == (RECIPE.tokens, RECIPE.tokens)
    heard.clear()
    assert write_self_text(model, chunks=1, progress=lambda *now: heard.append(now)) == first
    assert not heard
    assert write_self_text(model, "self:3", chunks=1) != first


def test_a_line_that_was_not_finished_counts_for_nothing(model: GGUFModel) -> None:
    whole = write_self_text(model, chunks=1)
    ledger = ledger_path(model, RECIPE)
    ledger.write_bytes(ledger.read_bytes()[:-9])
    assert not read_waves(ledger)
    assert write_self_text(model, chunks=1) == whole
    assert list(read_waves(ledger)) == [(0, 1)]


def test_an_interrupted_run_goes_on_to_the_same_text(model: GGUFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_text, "RECIPE", WritingOptions(tokens=16))

    def interrupt(done: float, total: float, note: str) -> None:
        if done > 32 * 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_self_text(model, chunks=34, progress=interrupt)
    ledger = ledger_path(model, self_text.RECIPE)
    assert list(read_waves(ledger)) == [(0, 32)]
    heard: list[tuple[float, str]] = []
    resumed = write_self_text(model, chunks=34, progress=lambda done, total, note: heard.append((done, note)))
    assert heard[0] == (32 * 16, "going on")
    ledger.unlink()
    assert write_self_text(model, chunks=34) == resumed


def test_how_long_it_takes_is_said_and_may_be_too_long(model: GGUFModel) -> None:
    heard: list[tuple[int, float]] = []
    with pytest.raises(TooSlow, match=r"tiny\.gguf: would write for"):
        write_self_text(model, chunks=1, most_seconds=0)
    write_self_text(model, chunks=1, announce=lambda *what: heard.append(what))
    ((tokens, seconds),) = heard
    assert tokens == RECIPE.tokens
    assert seconds > 0


def test_what_is_calibrated_on_when_nothing_is_named(
    model: GGUFModel, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    watch = CalibrationWatch(instead=heard.append)
    own = obtain_calibration(model, chunks=1, metric="inputs", watch=watch)
    assert (own.origin.text_name, heard) == ("self", [])
    stuck = open_gguf(saying(tiny, tmp_path / "stuck.gguf", {120: 40.0}))
    assert written_text(stuck, "auto", 1, 0, watch).name == "python-docs-calibration"
    assert "stuck.gguf: writes one token over and over" in heard[0]
    monkeypatch.setattr(obtain, "LONGEST", 0.0)
    assert written_text(model, "auto", 2, 0, watch).name == "python-docs-calibration"
    assert "would write for" in heard[1]
    assert "calibrating on python-docs-calibration instead" in heard[1]


@pytest.mark.parametrize("name", ["self:", "self:-1", "self:x", f"self:{2**32}"])
def test_a_seed_is_a_whole_number(model: GGUFModel, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: expected self, or self:SEED"):
        write_self_text(model, name, chunks=1)


def test_texts_are_mixed_by_their_chunks(model: GGUFModel, english: Path) -> None:
    own, book = (obtain_calibration(model, name, chunks=2) for name in ("self", str(english)))
    mixed = obtain_calibration(model, f"self,{english}", chunks=2)
    n, m = own.origin.chunk_count, book.origin.chunk_count
    assert mixed.origin.chunk_count == n + m
    moments = [calibration.layer(1) for calibration in (mixed, own, book)]
    for mine, a, b in (
        [each.mean for each in moments],
        [each.inputs for each in moments],
        [e.received for e in moments],
    ):
        np.testing.assert_allclose(mine, (n * a + m * b) / (n + m), rtol=1e-5, atol=1e-7)
    sensitivities = [calibration.sensitivity("v", 0) for calibration in (own, book)]
    assert mixed.sensitivity("v", 0) == pytest.approx(np.average(sensitivities, weights=(n, m)))
    assert obtain_calibration(model, f"{own.path},{book.path}").path == mixed.path
    assert mixed.text.content == f"{own.text.content}\n\n{book.text.content}"


def test_the_contamination_warning_knows_mixed_texts(model: GGUFModel, english: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"{i} is a number in a line of its own, which makes it long" for i in range(200)))
    mixed = obtain_calibration(model, f"self,{lines}", chunks=2, metric="inputs")
    operate(model, tmp_path / "out.gguf", Plan(metric="inputs", threshold=0.5), calibration=mixed)
    operated = open_gguf(tmp_path / "out.gguf")
    assert f"was calibrated on self,{lines}" in str(contamination_warning(operated, read_text(str(lines))))
    assert contamination_warning(operated, read_text(str(english))) is None


def test_own_statistics_of_another_model_are_refused(
    model: GGUFModel, make_tiny: Callable[[TinyModel], Path], tmp_path: Path
) -> None:
    own = obtain_calibration(model, "self", chunks=1, metric="inputs")
    other = open_gguf(make_tiny(TinyModel(seed=1)))
    with pytest.raises(UsageError, match="is another file"):
        obtain_calibration(other, f"{own.path},self")
    with pytest.raises(UsageError, match="is another file"):
        operate(other, tmp_path / "o.gguf", Plan(metric="inputs"), calibration=own)


def test_the_commands(tiny: Path, english: Path) -> None:
    shown = call("calibrate", tiny, "--text", "self", "--chunks", 1, "--show-text")
    assert shown.exit_code == 0, shown.output
    assert "tiny.gguf writes 528 tokens" in shown.stderr
    facts = json.loads(call("calibrate", tiny, "--text", "self", "--chunks", 1, "--show-text", "--json").stdout)
    plain = [re.sub(r"\\(x[0-9a-f]{2}|r)|[^ -~]", "", said) for said in (facts["content"], shown.stdout)]
    assert plain[0] == plain[1]  # but for control characters, which a terminal is not given
    made = call("calibrate", tiny, "--text", "self", "--chunks", 1, "--no-probes", "--json", "-o", "s.gguf")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["text_sha256"] == facts["text_sha256"]
    chosen = ("--metric", "inputs", "--threshold", 0.5, "--calibration")
    assert call("operate", tiny, "-o", "a.gguf", *chosen, f"s.gguf,{english}").exit_code == 0
    assert open_gguf(Path("a.gguf")).get("surgery.calibration.text") == f"self,{english}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("calibrate", "TINY", "--text", "self,missing.txt"), "--text missing.txt: no such file"),
        (("calibrate", "TINY", "--text", "TEXT", "--show-text"), "add --text self"),
        (("calibrate", "TINY", "--text", "self:1.5"), "self:1.5: expected self, or self:SEED"),
        (("operate", "TINY", "-o", "o.gguf", "--metric", "inputs", "--calibration", "self,"), "--calibration"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(
    tiny: Path, english: Path, arguments: tuple[object, ...], said: str
) -> None:
    result = call(*({"TINY": tiny, "TEXT": english}.get(str(a), a) for a in arguments))
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
