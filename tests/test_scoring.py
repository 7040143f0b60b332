"""Log-likelihoods, KL divergence and their statistics against SciPy."""

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from native.scoring import score_tokens
from pipeline.errors import SurgeryError
from pipeline.evaluation.statistics import divergence_summary, mean_and_standard_error, perplexity, require_finite

pytestmark = pytest.mark.numerical


def logits(seed: int, scale: float = 8) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((40, 3000)) * scale).astype(np.float32)


def test_scores_are_scipys() -> None:
    model, base, targets = logits(1), logits(2), np.arange(40) * 7
    scores = score_tokens(model, targets, base)
    log_p, log_q = (log_softmax(values.astype(np.float64), axis=1) for values in (base, model))
    assert np.allclose(scores.nll, -log_q[np.arange(40), targets], rtol=1e-5)
    assert np.allclose(scores.base_nll, -log_p[np.arange(40), targets], rtol=1e-5)
    assert np.allclose(scores.kld, rel_entr(np.exp(log_p), np.exp(log_q)).sum(axis=1), rtol=1e-4)
    assert np.array_equal(scores.same_top, model.argmax(axis=1) == base.argmax(axis=1))


def test_a_model_against_itself_is_exactly_zero() -> None:
    scores = score_tokens(logits(1), np.zeros(40, int), logits(1))
    assert not scores.kld.any()
    assert scores.same_top.all()


def test_large_logits_do_not_overflow() -> None:
    scores = score_tokens(logits(1, 1e4), np.zeros(40, int), logits(2, 1e4))
    assert np.isfinite(scores.nll).all()
    assert np.isfinite(scores.kld).all()


def test_nothing_is_compared_without_a_base() -> None:
    scores = score_tokens(logits(1), np.zeros(40, int))
    assert len(scores.nll) == 40
    assert not len(scores.kld) + len(scores.base_nll) + len(scores.same_top)


def test_statistics_follow_llama_cpps_formulas() -> None:
    values = np.random.default_rng(0).exponential(1, 1001)
    mean, error = mean_and_standard_error(values)
    n, total, squares = len(values), values.sum(), (values**2).sum()
    assert error == pytest.approx(np.sqrt((squares / n - (total / n) ** 2) / (n - 1)))
    assert perplexity(values) == pytest.approx((np.exp(mean), np.exp(mean) * error))
    summary = divergence_summary(values, values > 1)
    assert summary["kld_median"] == sorted(values)[500]
    assert summary["kld_p99"] == pytest.approx(sorted(values)[990])
    assert summary["same_top"] == (values > 1).mean()
    assert mean_and_standard_error(np.ones(1)) == (1, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error(bad: float) -> None:
    require_finite("x", np.ones(3))
    with pytest.raises(SurgeryError, match="at scored token 2"):
        require_finite("x", np.array([1, 2, bad]))
