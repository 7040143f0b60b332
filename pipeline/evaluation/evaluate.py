"""Perplexity of a model on a text and, given a base, KL divergence to it."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from native.evaluate import EvaluationStart, evaluate_chunks
from native.isolated import isolated
from native.model import ContextOptions
from pipeline.errors import UsageError
from pipeline.evaluation.statistics import divergence_summary, perplexity, require_finite
from pipeline.files.texts import Text
from pipeline.progress import Progress, silent

SMALLEST_CONTEXT = 8


def evaluate(
    model: Path,
    text: Text,
    *,
    base: Path | None = None,
    chunks: int | None = None,
    options: ContextOptions = ContextOptions(),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Evaluate `model` on `text`; the result has the keys that `surgery eval --json` prints, with None where no base is.

    `seconds` and `tokens_per_second` cover decoding and scoring; tokens of model and base are counted together.
    `progress` counts chunks. Raises UsageError for options out of range,
    NativeError when llama.cpp refuses, SurgeryError on NaN or infinity.
    """
    if options.n_ctx < SMALLEST_CONTEXT:
        raise UsageError.of("n_ctx", options.n_ctx, f"expected at least {SMALLEST_CONTEXT} tokens")
    if chunks is not None and chunks < 1:
        raise UsageError.of("chunks", chunks, "expected at least 1")
    events = isolated(evaluate_chunks, str(model), base and str(base), text.content, chunks=chunks, options=options)
    start = next(events)
    assert isinstance(start, EvaluationStart)
    progress(0, start.chunks, "")
    columns: list[list[np.ndarray]] = [[], [], [], []]
    started = time.perf_counter()
    for finished in events:
        for scores in finished:
            for column, values in zip(columns, (scores.nll, scores.base_nll, scores.kld, scores.same_top), strict=True):
                column.append(values)
        nll, base_nll, kld = (np.concatenate(column) for column in columns[:3])
        require_finite(f"{model}: the negative log-likelihood", nll)
        require_finite(f"{base}: the negative log-likelihood", base_nll)
        require_finite(f"{model}: the KL divergence", kld)
        note = f"ppl {perplexity(nll)[0]:.6g}" + (f", KL {kld.mean():.4f}" if base else "")
        progress(len(columns[0]), start.chunks, note)
    seconds = time.perf_counter() - started
    nll, base_nll, kld, same_top = (np.concatenate(column) for column in columns)
    ppl, ppl_se = perplexity(nll)
    tokens = start.chunks * start.n_ctx * (2 if base else 1)
    return {
        "model": str(model),
        "base": base and str(base),
        "text": text.name,
        "text_sha256": text.sha256,
        "ppl": ppl,
        "ppl_se": ppl_se,
        "nll": float(nll.mean()),
        "n_ctx": start.n_ctx,
        "chunks": start.chunks,
        "tokens_scored": len(nll),
        **(
            divergence_summary(kld, same_top)
            if base
            else dict.fromkeys(("kld_mean", "kld_se", "kld_median", "kld_p99", "same_top"))
        ),
        "base_ppl": perplexity(base_nll)[0] if base else None,
        "base_ppl_se": perplexity(base_nll)[1] if base else None,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "kv_cache_bytes": start.kv_cache_bytes,
    }
