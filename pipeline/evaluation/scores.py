"""What a text's scores say of a model: perplexity, KL divergence and agreement, with what they are uncertain by."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import exp, inf, nan

import numpy as np

from native.scoring import TokenScores
from pipeline.evaluation.statistics import interval, stratified_mean


@dataclass(frozen=True)
class Scores:
    """Perplexity, KL divergence from the base in nats a token, and agreement with it, of one text or several.

    NaN is what is not known: a base's numbers and the KL divergence without a base, errors of a single chunk. Texts
    count alike, however long; the perplexity of several is the geometric mean of theirs.

    nll: the mean negative log-likelihood in nats a token
    ppl, base_ppl, kld_mean: exp(nll), infinite beyond what a float holds, and the base's; the mean KL divergence
    .._se, .._low, .._high: standard error and 95 % interval over chunks; tokens of one chunk are not independent
    .._se_tokens: the standard error over tokens, as llama.cpp's perplexity tool prints it: several times too small
    kld_median, kld_p99: median and 99th percentile over tokens
    same_top: the share of tokens after which both models' most likely successor is the same, in [0, 1]
    """

    nll: float
    ppl: float
    ppl_se: float
    ppl_low: float
    ppl_high: float
    ppl_se_tokens: float
    base_ppl: float
    base_ppl_se: float
    base_ppl_low: float
    base_ppl_high: float
    base_ppl_se_tokens: float
    kld_mean: float
    kld_se: float
    kld_low: float
    kld_high: float
    kld_se_tokens: float
    kld_median: float
    kld_p99: float
    same_top: float


NOT_KNOWN = Scores(*(nan for _ in fields(Scores)))
"""The scores of what is not measured."""
Chunked = Sequence[np.ndarray]  # a text's chunks, each one number a scored token


def summarise(texts: Sequence[Sequence[TokenScores]]) -> Scores:
    """The scores of `texts`, each a sequence of at least one chunk; all finite."""
    kld = [[chunk.kld for chunk in chunks] for chunks in texts]
    same = [[chunk.same_top for chunk in chunks] for chunks in texts]
    nll = [[chunk.nll for chunk in chunks] for chunks in texts]
    return Scores(
        _uncertain(nll)[0],
        *_perplexity(nll),
        *_perplexity([[chunk.base_nll for chunk in chunks] for chunks in texts]),
        *_uncertain(kld),
        *_percentiles(np.concatenate([values for chunks in kld for values in chunks])),
        _uncertain(same)[0],
    )


def _perplexity(texts: Sequence[Chunked]) -> tuple[float, float, float, float, float]:
    """Of negative log-likelihoods: perplexity, and its errors as `_uncertain` gives those of the mean."""
    mean, error, low, high, over_tokens = _uncertain(texts)
    return perplexity(mean), perplexity(mean) * error, perplexity(low), perplexity(high), perplexity(mean) * over_tokens


def _uncertain(texts: Sequence[Chunked]) -> tuple[float, float, float, float, float]:
    """Mean; standard error, lower and upper bound over chunks; standard error over tokens."""
    if not len(texts[0][0]):
        return nan, nan, nan, nan, nan
    mean, over_tokens, _ = stratified_mean(*(np.concatenate(chunks) for chunks in texts))
    chunk_means = [np.array([values.mean() for values in chunks]) for chunks in texts]
    if min(map(len, chunk_means)) < 2:
        return mean, nan, nan, nan, over_tokens
    return mean, stratified_mean(*chunk_means)[1], *interval(*chunk_means)[1:], over_tokens


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    return (float(np.median(values)), float(np.quantile(values, 0.99))) if len(values) else (nan, nan)


def perplexity(nll: float) -> float:
    """exp(nll), or infinity where no float is large enough: a broken model's may be, or a bound from two chunks."""
    try:
        return exp(nll)
    except OverflowError:
        return inf
