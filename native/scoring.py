"""What is read off logits: negative log-likelihood of the right token, KL divergence to another model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class TokenScores:
    """One number a scored token, each an array of shape (n,).

    nll: negative log-likelihood of the token that came, in nats, float64
    base_nll, kld: the base's, and the KL divergence from base to model in nats; empty without a base
    same_top: whether both models' most likely successor is the same, bool; empty without a base
    """

    nll: np.ndarray
    base_nll: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray

    @staticmethod
    def concatenate(parts: "Sequence[TokenScores]") -> "TokenScores":
        return TokenScores(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(TokenScores)))


def score_tokens(logits: np.ndarray, targets: np.ndarray, base_logits: np.ndarray | None = None) -> TokenScores:
    """Score `targets` (n,) under `logits` (n, n_vocab), float32, and compare with `base_logits` of the same shape.

    KL divergence is sum p_base (log p_base - log p) over the whole vocabulary, as in llama.cpp's perplexity tool.
    Row by row, so that a row stays in the processor's cache from its first use to its last.
    """
    n = len(targets)
    nll = np.empty(n)
    base_nll, kld, same_top = (np.empty(n if base_logits is not None else 0, dtype) for dtype in (float, float, bool))
    work = np.empty(logits.shape[1], np.float32)
    for i, target in enumerate(targets.tolist()):
        row = logits[i]
        log_total, _ = log_sum_exp(row, work)
        nll[i] = log_total - row[target]
        if base_logits is not None:
            base = base_logits[i]
            base_log_total, total = log_sum_exp(base, work)
            base_nll[i] = base_log_total - base[target]
            probability = work  # still exp(base - max), whose sum is `total`
            kld[i] = np.dot(probability, base - row) / total - base_log_total + log_total
            same_top[i] = row.argmax() == base.argmax()
    return TokenScores(nll, base_nll, kld, same_top)


def log_sum_exp(row: np.ndarray, work: np.ndarray) -> tuple[float, float]:
    """log(sum(exp(row))), and the sum of `work`, which is left holding exp(row - max(row))."""
    largest = float(row.max())
    np.subtract(row, np.float32(largest), out=work)
    np.exp(work, out=work)
    total = float(work.sum(dtype=np.float32))
    return largest + float(np.log(total)), total
