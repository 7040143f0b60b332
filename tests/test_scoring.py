"""Log-likelihoods, KL divergence and their statistics against SciPy."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, rel_entr

from native.scoring import TokenScores, score_tokens
from pipeline.errors import SurgeryError
from pipeline.evaluation.scores import summarise
from pipeline.evaluation.statistics import require_finite

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


def test_a_texts_scores_follow_llama_cpps_formulas_over_tokens_and_students_t_over_chunks() -> None:
    rng = np.random.default_rng(0)
    nll, kld = rng.exponential(1, (2, 7, 143))
    chunks = [TokenScores(n, np.empty(0), k, k > 1) for n, k in zip(nll, kld, strict=True)]
    found = summarise([chunks])
    for values, mean, error in (
        (nll, np.log(found.ppl), found.ppl_se_tokens / found.ppl), (kld, found.kld_mean, found.kld_se_tokens)
    ):  # fmt: skip
        n, total, squares = values.size, values.sum(), (values**2).sum()
        assert mean == pytest.approx(total / n)
        assert error == pytest.approx(np.sqrt((squares / n - (total / n) ** 2) / (n - 1)))
    means = kld.mean(axis=1)
    assert (found.kld_low, found.kld_high) == pytest.approx(stats.t.interval(0.95, 6, means.mean(), stats.sem(means)))
    means = nll.mean(axis=1)
    low, high = stats.t.interval(0.95, 6, means.mean(), stats.sem(means))
    assert (found.ppl_low, found.ppl_high) == pytest.approx((np.exp(low), np.exp(high)))
    assert found.ppl_se == pytest.approx(found.ppl * stats.sem(means))
    assert found.kld_median == np.median(kld)
    assert found.kld_p99 == pytest.approx(np.quantile(kld, 0.99))
    assert found.same_top == (kld > 1).mean()
    assert np.isnan([found.base_ppl, found.base_ppl_se]).all()


def test_texts_count_alike_and_a_single_chunk_has_no_interval() -> None:
    def chunk(kld: float) -> TokenScores:
        return TokenScores(np.ones(3), np.ones(3), np.full(3, kld), np.ones(3, bool))

    found = summarise([[chunk(1), chunk(3)], [chunk(10)] * 50])
    assert found.kld_mean == 6
    assert found.kld_low < 6 < found.kld_high
    alone = summarise([[chunk(1)]])
    assert alone.kld_mean == 1
    assert np.isnan([alone.kld_se, alone.kld_low, alone.kld_high, alone.ppl_low, alone.base_ppl_high]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error(bad: float) -> None:
    require_finite("x", np.ones(3))
    with pytest.raises(SurgeryError, match="at scored token 2"):
        require_finite("x", np.array([1, 2, bad]))
