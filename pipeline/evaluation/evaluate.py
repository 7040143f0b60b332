"""Perplexity of a model on texts and, given a base, KL divergence to it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

from native.evaluate import EvaluationStart, ModelRun, TextChunks, as_reference, evaluate_chunks
from native.isolated import isolated
from native.model import ContextOptions
from native.scoring import TokenScores
from pipeline.errors import UsageError
from pipeline.evaluation.scores import Scores, perplexity, summarise
from pipeline.evaluation.statistics import require_finite
from pipeline.inputs.texts import Text, named
from pipeline.progress import Progress, silent
from pipeline.revision import made_with
from pipeline.tabular import Tabular

SMALLEST_CONTEXT = 8


@dataclass(frozen=True)
class TextEvaluation(Scores):
    """The scores of one text: its name, the SHA-256 of its UTF-8 bytes, and how much of it was read."""

    text: str
    text_sha256: str
    chunks: int
    tokens_scored: int


@dataclass(frozen=True)
class Evaluation(Scores, Tabular):
    """What a model does with `texts`: the scores are those of a single one, or of all, which count alike.

    text, chunks, tokens_scored: the names and the sums of all texts; text_sha256: of a single one
    worst: the name of the text with the largest KL divergence or, without a base, perplexity
    seconds: decoding and scoring; tokens_per_second counts the tokens of model and base together
    kv_cache_bytes: what llama.cpp allocates for `n_ctx` tokens of the model
    made_with: code, libraries, processor and threads, as `pipeline.revision.made_with` notes them
    """

    model: str
    base: str | None
    text: str
    text_sha256: str | None
    n_ctx: int
    chunks: int
    tokens_scored: int
    texts: tuple[TextEvaluation, ...]
    worst: str
    seconds: float
    tokens_per_second: float
    kv_cache_bytes: int
    made_with: dict[str, Any]

    def headline(self) -> str:
        beside = f", KL divergence from {self.base} in nats a token" if self.base else ""
        return f"{self.model}: perplexity{beside}, with 95 % intervals over chunks"

    def rows(self) -> list[dict[str, Any]]:
        """A row a text."""
        divergence = ("kld_mean", "kld_low", "kld_high", "same_top") if self.base else ()
        names = ("text", "chunks", "ppl", "ppl_low", "ppl_high", *divergence)
        return [{name: getattr(text, name) for name in names} for text in self.texts]


def evaluate(
    model: Path,
    texts: Text | Sequence[Text],
    *,
    base: Path | None = None,
    chunks: int | None = None,
    options: ContextOptions = ContextOptions(),
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate `model`, run with `options`, on each of `texts`, beside `base`, whose KV cache is in F16.

    `chunks` is the most that a text gives. `progress` counts chunks. Raises UsageError for options out of range, or
    a text given twice; NativeError when llama.cpp refuses, SurgeryError on NaN or infinity.
    """
    texts = [texts] if isinstance(texts, Text) else list(texts)
    if options.n_ctx < SMALLEST_CONTEXT:
        raise UsageError.of("n_ctx", options.n_ctx, f"expected at least {SMALLEST_CONTEXT} tokens")
    if chunks is not None and chunks < 1:
        raise UsageError.of("chunks", chunks, "expected at least 1")
    require_distinct(texts)
    events = isolated(
        evaluate_chunks,
        [ModelRun(str(model), options)],
        [TextChunks(text.content, chunks) for text in texts],
        ModelRun(str(base), as_reference(options)) if base else None,
    )
    events = named(texts, events)
    start = next(events)
    assert isinstance(start, EvaluationStart)
    total = sum(start.chunks)
    progress(0, total, "")
    found: list[list[TokenScores]] = [[] for _ in texts]
    note = _Note()
    started = time.perf_counter()
    for done, chunk in enumerate(events, 1):
        (scores,) = chunk.scores
        where = f"chunk {chunk.number} of {texts[chunk.text].name}"
        require_finite(f"{model}: the negative log-likelihood", scores.nll, where)
        require_finite(f"{base}: the negative log-likelihood", scores.base_nll, where)
        require_finite(f"{model}: the KL divergence", scores.kld, where)
        found[chunk.text].append(scores)
        note.add(texts[chunk.text].name if len(texts) > 1 else "", scores)
        progress(done, total, str(note))
    seconds = time.perf_counter() - started
    each = tuple(
        TextEvaluation(**vars(summarise([scored])), **_read_of(text, scored))
        for text, scored in zip(texts, found, strict=True)
    )
    return Evaluation(
        **vars(summarise(found)),
        model=str(model),
        base=str(base) if base else None,
        text=", ".join(text.name for text in texts),
        text_sha256=texts[0].sha256 if len(texts) == 1 else None,
        n_ctx=options.n_ctx,
        chunks=total,
        tokens_scored=sum(one.tokens_scored for one in each),
        texts=each,
        worst=max(each, key=lambda one: one.kld_mean if base else one.ppl).text,
        seconds=seconds,
        tokens_per_second=total * options.n_ctx * (2 if base else 1) / seconds,
        kv_cache_bytes=start.kv_cache_bytes[0],
        made_with=made_with(options.threads, "scores"),
    )


def require_distinct(texts: Sequence[Text]) -> None:
    """Raise UsageError for no text at all, or for one that is given twice, perhaps by two names."""
    if not texts:
        raise UsageError("`text`: name at least one", argument="text")
    known: dict[str, str] = {}
    for text in texts:
        if text.sha256 in known:
            raise UsageError.of("text", text.name, f"is the same text as {known[text.sha256]}; give it once")
        known[text.sha256] = text.name


def _read_of(text: Text, scored: Sequence[TokenScores]) -> dict[str, Any]:
    """How much of a text was read, as TextEvaluation has it."""
    tokens = sum(len(chunk.nll) for chunk in scored)
    return {"text": text.name, "text_sha256": text.sha256, "chunks": len(scored), "tokens_scored": tokens}


class _Note:
    """The perplexity and KL divergence of the text that is being read, so far."""

    def __init__(self) -> None:
        self.text, self.chunks, self.nll, self.kld = "", 0, 0.0, 0.0

    def add(self, text: str, scores: TokenScores) -> None:
        if text != self.text:
            self.text, self.chunks, self.nll, self.kld = text, 0, 0.0, 0.0
        self.chunks += 1
        self.nll += float(scores.nll.mean())
        self.kld += float(scores.kld.mean()) if len(scores.kld) else nan

    def __str__(self) -> str:
        where = f"{self.text}: " if self.text else ""
        divergence = "" if isnan(self.kld) else f", KL {self.kld / self.chunks:.4f}"
        return f"{where}ppl {perplexity(self.nll / self.chunks):.6g}{divergence}"
