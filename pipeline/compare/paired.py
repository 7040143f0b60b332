"""Cells held against each other, chunk by chunk; and what the times and answers of one say."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.compare.found import Difference, Interaction
from pipeline.evaluation.statistics import Quartiles, interval, jackknife_interval, quartiles

WARM_UP_TOKENS = 8


def _paired(*losses: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
    """For each of `losses` its arrays, text by text, of the chunks that all of them have."""
    shared = [sha256 for sha256 in losses[0] if all(sha256 in other for other in losses)]
    counts = {sha256: min(len(each[sha256]) for each in losses) for sha256 in shared}
    return [[each[sha256][: counts[sha256]] for sha256 in shared] for each in losses]


def difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> Difference | None:
    """The mean difference of paired chunks and its 95 % interval, texts counting alike; by text, (chunks,) nats.

    None when no text has two pairs, or one has a single pair.
    """
    mine, others = _paired(ours, theirs)
    pairs = [one - other for one, other in zip(mine, others, strict=True)]
    if not pairs or min(map(len, pairs)) < 2:
        return None
    return Difference(*interval(*pairs))


def interaction(
    both: Mapping[str, np.ndarray], surgery: Mapping[str, np.ndarray], quantised: Mapping[str, np.ndarray]
) -> Interaction | None:
    """How the KL divergence of both together compares with the sum of each alone: a ratio and its 95 % interval.

    By text, (chunks,) nats, paired over all chunks; None with fewer than two pairs, or when neither alone loses anything.
    """
    columns = [np.concatenate(each) if each else np.empty(0) for each in _paired(both, surgery, quantised)]
    if len(columns[0]) < 2 or (columns[1] + columns[2]).mean() <= 0:
        return None
    ratio, low, high = jackknife_interval(lambda b, s, q: b / (s + q), *columns)
    verdict = "adds up" if low <= 1 <= high else "more than adds up" if ratio > 1 else "less than adds up"
    return Interaction(ratio, low, high, verdict)


def prompt_speed(chunk_seconds: Sequence[float], n_ctx: int) -> Quartiles | None:
    """Tokens a second over whole chunks, median and quartiles; the first chunk warms up, if there is another."""
    return quartiles(n_ctx / np.array(chunk_seconds[1:] or chunk_seconds))


def generation_speed(token_seconds: Sequence[float]) -> Quartiles | None:
    """Tokens a second of an answer, median and quartiles, after WARM_UP_TOKENS."""
    return quartiles(1 / np.array(token_seconds[WARM_UP_TOKENS:]))


def first_difference(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> int | None:
    """The index of the first token that two answers do not share; None when they are the same or one is missing."""
    if ours is None or theirs is None or ours == theirs:
        return None
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
