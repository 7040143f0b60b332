"""Evaluation: llama.cpp's rules, recomputed from single sequences; the real model against itself and operated."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from native.errors import NativeError
from native.evaluate import EvaluationStart, ModelRun, ScoredChunk, TextChunks, evaluate_chunks
from native.model import ContextOptions, load_model, open_context
from pipeline.errors import SurgeryError, UsageError
from pipeline.evaluation.evaluate import evaluate
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import EVALUATION_TEXT, Text, read_text
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.commands import call, call_json
from tests.tiny_model import TinyModel, tensors_of, with_number, write_tiny_model


def reference_log_probabilities(model: Path, text: str, n_ctx: int, chunks: int) -> np.ndarray:
    """Log-probabilities of the scored positions, one sequence decoded at a time with all its logits: (n, n_vocab)."""
    rows = []
    with load_model(str(model)) as loaded, open_context(loaded, ContextOptions(n_ctx=n_ctx, n_batch=n_ctx)) as context:
        tokens = loaded.tokenize(text, special=False)
        for chunk in tokens[: chunks * n_ctx].reshape(chunks, n_ctx):
            context.clear()
            decoded = np.r_[loaded.bos, chunk[1:]] if loaded.adds_bos else chunk
            context.decode(decoded, np.arange(n_ctx), np.zeros(n_ctx, int), np.ones(n_ctx, bool))
            log_p = log_softmax(context.logits(n_ctx).astype(np.float64), axis=1)
            rows.append(np.column_stack([log_p[n_ctx // 2 : -1], chunk[n_ctx // 2 + 1 :]]))
    return np.vstack(rows)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("chunks", [1, 3, 5])
def test_follows_the_rules_of_the_perplexity_tool(
    english: Path, make_tiny: Callable[[TinyModel], Path], chunks: int, adds_bos: bool
) -> None:
    tiny, other = (make_tiny(TinyModel(seed=seed, adds_bos=adds_bos)) for seed in (0, 1))
    text, n_ctx = read_text(str(english)), 64
    result = evaluate(other, text, base=tiny, chunks=chunks, options=ContextOptions(n_ctx=n_ctx))
    rows, base_rows = (reference_log_probabilities(path, text.content, n_ctx, chunks) for path in (other, tiny))
    log_q, log_p, targets = rows[:, :-1], base_rows[:, :-1], rows[:, -1].astype(int)
    nll = -log_q[np.arange(len(rows)), targets]
    assert result.tokens_scored == len(rows) == chunks * (n_ctx - 1 - n_ctx // 2)
    assert result.ppl == pytest.approx(np.exp(nll.mean()), rel=1e-4)
    assert result.ppl_se_tokens == pytest.approx(np.exp(nll.mean()) * nll.std() / np.sqrt(len(nll) - 1), rel=1e-3)
    kld = rel_entr(np.exp(log_p), np.exp(log_q)).sum(axis=1)
    assert result.kld_mean == pytest.approx(kld.mean(), rel=1e-3)
    assert result.kld_median == pytest.approx(np.median(kld), rel=1e-3)
    assert result.kld_p99 == pytest.approx(np.quantile(kld, 0.99), rel=1e-3)
    assert result.same_top == pytest.approx((log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean())


def test_a_context_longer_than_a_batch_is_decoded_in_parts(tiny: Path, english: Path) -> None:
    text = read_text(str(english))
    text = Text("repeated", (text.content + " ") * 2)
    result = evaluate(tiny, text, chunks=1, options=ContextOptions(n_ctx=3000))
    rows = reference_log_probabilities(tiny, text.content, 3000, 1)
    nll = -rows[np.arange(len(rows)), rows[:, -1].astype(int)]
    assert result.tokens_scored == 1499
    assert result.ppl == pytest.approx(np.exp(nll.mean()), rel=1e-3)


def test_a_perplexity_beyond_what_a_float_holds(tiny: Path, english: Path, tmp_path: Path) -> None:
    tensors = tensors_of(TinyModel())
    tensors["output_norm.weight"] = tensors["output_norm.weight"] * 300
    path = write_tiny_model(tmp_path / "large.gguf", tensors=tensors)
    arguments = ["eval", path, "--text", english, "--ctx", "64", "--chunks", "2", "--base", tiny]
    found = json.loads(call(*arguments, "--json").stdout, parse_constant=pytest.fail)
    assert (found["ppl"], found["ppl_se"]) == (None, None)
    assert found["nll"] > np.log(np.finfo(float).max)
    assert found["base_ppl"] > 1
    assert "\nperplexity      > 1e308 (95 % interval over chunks" in call(*arguments).stdout


def test_the_real_model_against_itself_loses_nothing(embedded: Path) -> None:
    result = evaluate(embedded, read_text(EVALUATION_TEXT), base=embedded, chunks=2)
    assert result.kld_mean == result.kld_p99 == 0
    assert result.same_top == 1
    assert result.ppl == result.base_ppl
    assert 5 < result.ppl < 30
    per_token = 30 * 3 * (64 + 64) * 2  # layers x KV heads x (key + value length) x bytes of F16
    assert result.kv_cache_bytes == pytest.approx(512 * per_token, rel=1e-3)


def test_divergence_grows_as_the_threshold_falls_and_random_is_worse(embedded: Path, tmp_path: Path) -> None:
    text, model = read_text(EVALUATION_TEXT), open_gguf(embedded)

    def divergence(name: str, plan: Plan) -> float:
        operate(model, tmp_path / name, plan)
        return float(
            evaluate(tmp_path / name, text, base=embedded, chunks=2, options=ContextOptions(n_ctx=256)).kld_mean
        )

    layers = "4-8"
    falling = [divergence(f"{t}.gguf", Plan(threshold=t, layers=layers)) for t in (0.99, 0.9, 0.5)]
    assert 0 < falling[0] < falling[1] < falling[2]
    assert divergence("random.gguf", Plan(method="random", threshold=0.9, layers=layers)) > falling[1]


@pytest.mark.parametrize("cache", ["q8_0", "q4_0", "f32"])
def test_the_kv_cache_may_have_another_type(embedded: Path, cache: str) -> None:
    options = ContextOptions(n_ctx=256, type_k=cache, type_v=cache)
    result = evaluate(embedded, read_text(EVALUATION_TEXT), chunks=2, options=options)
    share = {"q8_0": 34 / 64, "q4_0": 18 / 64, "f32": 2}[cache]  # of F16's bytes
    assert result.kv_cache_bytes == pytest.approx(256 * 30 * 3 * 128 * 2 * share, rel=0.02)


def test_a_base_has_a_cache_in_f16_whatever_the_models_is(embedded: Path) -> None:
    """Against itself, a model with a quantised cache loses what the cache loses."""
    text, quantised = read_text(EVALUATION_TEXT), ContextOptions(n_ctx=128, type_k="q4_0", type_v="q4_0")
    mine = evaluate(embedded, text, base=embedded, chunks=2, options=quantised)
    assert mine.kld_mean > 0.005
    assert mine.ppl == evaluate(embedded, text, chunks=2, options=quantised).ppl
    assert mine.base_ppl == evaluate(embedded, text, chunks=2, options=ContextOptions(n_ctx=128)).ppl


def test_refusals(tiny: Path, embedded: Path, english: Path, make_tiny: Callable[[TinyModel], Path]) -> None:
    text = read_text(str(english))
    with pytest.raises(SurgeryError, match=r"short: has \d+ tokens; at least 1024 are needed"):
        evaluate(tiny, [text, Text("short", "too short")])
    with pytest.raises(NativeError, match="has another vocabulary"):
        evaluate(tiny, text, base=embedded)
    with pytest.raises(UsageError, match="`n_ctx=4`"):
        evaluate(tiny, text, options=ContextOptions(n_ctx=4))
    with pytest.raises(UsageError, match="`chunks=0`"):
        evaluate(tiny, text, chunks=0)
    with pytest.raises(NativeError, match="cannot make a context"):  # 24 is no multiple of Q8_0's block of 32
        evaluate(
            make_tiny(TinyModel(key_length=24, value_length=24)), text, options=ContextOptions(n_ctx=64, type_k="q8_0")
        )


def test_a_broken_model_is_an_error_not_a_number(tiny: Path, english: Path, tmp_path: Path) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", "output_norm.weight", np.nan)
    text, options = read_text(str(english)), ContextOptions(n_ctx=64)
    for model, base in ((broken, None), (broken, tiny), (tiny, broken)):
        with pytest.raises(
            SurgeryError, match=r"broken\.gguf: the negative log-likelihood is nan .* numerically broken"
        ):
            evaluate(model, text, base=base, chunks=2, options=options)


def test_texts(tmp_path: Path) -> None:
    evaluation, calibration = read_text("python-docs"), read_text("python-docs-calibration")
    assert len(evaluation.content) > 100_000
    assert len(calibration.content) > 100_000
    lines = [{line for line in text.content.splitlines() if len(line) > 60} for text in (evaluation, calibration)]
    assert len(lines[0] & lines[1]) <= 0.005 * len(lines[1])
    path = tmp_path / "text.txt"
    path.write_text("one newline is dropped\n\n")
    assert read_text(str(path)).content == "one newline is dropped\n"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(SurgeryError, match=r"not UTF-8 text \(byte 3\)"):
        read_text(str(path))
    with pytest.raises(UsageError, match="`text` nowhere: no such file"):
        read_text("nowhere")


def test_several_texts_are_each_measured_as_if_alone(
    tiny: Path, english: Path, make_tiny: Callable[[TinyModel], Path]
) -> None:
    other, options = make_tiny(TinyModel(seed=1)), ContextOptions(n_ctx=64)
    texts = [read_text(str(english)), Text("reversed", read_text(str(english)).content[::-1])]
    told: list[tuple[float, float]] = []
    both = evaluate(
        other, texts, base=tiny, chunks=3, options=options, progress=lambda done, total, _: told.append((done, total))
    )
    alone = [evaluate(other, text, base=tiny, chunks=3, options=options) for text in texts]
    assert both.texts == tuple(one.texts[0] for one in alone)
    assert both.kld_mean == pytest.approx(np.mean([one.kld_mean for one in alone]))
    assert both.ppl == pytest.approx(np.sqrt(alone[0].ppl * alone[1].ppl))
    assert both.worst == max(alone, key=lambda one: one.kld_mean).text
    assert (both.chunks, both.tokens_scored) == (6, 2 * alone[0].tokens_scored)
    assert told == [(done, 6) for done in range(7)]  # chunk by chunk
    with pytest.raises(UsageError, match=r"`text=.again.`: is the same text as reversed; give it once"):
        evaluate(other, [*texts, Text("again", texts[1].content)], options=options)


def test_eval_prints_intervals_over_chunks_and_each_text(tiny: Path, english: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(english.read_text()[::-1])
    arguments = ("eval", tiny, "--base", tiny, "--ctx", "64", "--chunks", "2", "--text", english)
    shown = call(*arguments).stdout
    assert re.search(r"perplexity      [\d.]+ \(95 % interval over chunks [\d.]+ to [\d.]+\)\n", shown)
    assert "+/-" not in shown
    shown = call(*arguments, "--text", "other.txt").stdout
    assert [line.split()[0] for line in shown.splitlines()[:4]] == ["text", str(english), "other.txt", "mean"]
    found = call_json(*arguments, "--text", "other.txt")
    assert isinstance(found["texts"], list)
    assert [text["text"] for text in found["texts"]] == [str(english), "other.txt"]
    assert found["worst"] in (str(english), "other.txt")
    assert found["schema"] == 2
    assert call_json("eval", tiny, "--ctx", "64", "--chunks", "1", "--text", english)["ppl_se"] is None
    assert "a single chunk: no interval" in call("eval", tiny, "--ctx", "64", "--chunks", "1", "--text", english).stdout


def test_models_in_step_share_a_base_and_their_tokens(
    tiny: Path, english: Path, make_tiny: Callable[[TinyModel], Path]
) -> None:
    """Many models against one base: each has the scores that it has alone, and the base is decoded once."""
    options, text = ContextOptions(n_ctx=64), TextChunks(read_text(str(english)).content, 2)
    runs = [ModelRun(str(make_tiny(TinyModel(seed=seed))), options) for seed in (1, 2)]
    base = ModelRun(str(tiny), options)
    start, *chunks = list(evaluate_chunks(runs, [text], base))
    assert start == EvaluationStart((2,), (start.kv_cache_bytes[0],) * 3)  # type: ignore[union-attr]
    for number, run in enumerate(runs):
        _, *alone = list(evaluate_chunks([run], [text], base))
        for mine, its in zip(chunks, alone, strict=True):
            assert isinstance(mine, ScoredChunk)
            assert isinstance(its, ScoredChunk)
            assert np.array_equal(mine.scores[number].kld, its.scores[0].kld)


def test_code_is_a_text_of_its_own() -> None:
    evaluation, calibration = (read_text(name).content for name in ("python-code", "python-code-calibration"))
    assert min(len(evaluation), len(calibration)) > 200_000
    for content in (evaluation, calibration):
        assert content.count("\ndef ") > 100
    lines = [
        {line.strip() for line in text.splitlines() if len(line.strip()) >= 40} for text in (evaluation, calibration)
    ]
    assert not lines[0] & lines[1]
