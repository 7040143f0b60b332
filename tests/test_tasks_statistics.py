"""Intervals and paired tests, against SciPy and against their definitions."""

import click
import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.cli.task_tables import print_results
from pipeline.tasks.items import TaskResult
from pipeline.tasks.statistics import Comparison, Estimate, bootstrap, compare, estimate, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (150, 200), (1, 1)])
def test_wilsons_interval_is_scipys(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_mcnemar_counts_what_one_alone_has_right() -> None:
    mine, base = np.array([1, 1, 1, 0, 0, 1] * 5), np.array([1, 0, 0, 1, 0, 0] * 5)
    found = compare(mine, base)
    assert (found.gained, found.lost) == (15, 5)
    assert found.p == pytest.approx(binomtest(5, 20).pvalue)
    assert found.difference.mean == pytest.approx(10 / 30)


def test_no_difference_is_none() -> None:
    values = np.array([1.0, 0.0, 1.0])
    found = compare(values, values)
    assert (found.p, found.gained, found.lost) == (1.0, 0, 0)
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0, 0, 0)


def test_the_bootstrap_resamples_items() -> None:
    values = np.random.default_rng(0).normal(1, 2, 300)
    low, high = bootstrap(values)
    assert low is not None
    assert high is not None
    half = 1.96 * values.std() / np.sqrt(300)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_a_single_item_has_no_interval_of_a_mean() -> None:
    assert bootstrap(np.array([2.0])) == (None, None)
    assert estimate(np.array([2.5])).low is None
    assert compare(np.array([0.3, 0.5]), np.array([0.2, 0.5])).p is None


def test_the_interval_of_the_difference_is_the_last_that_a_narrow_terminal_is_spared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    value = Estimate(0.7, 0.63, 0.76)
    paired = Comparison(Estimate(-0.02, -0.08, 0.03), 5, 9, 0.42)
    results = [
        TaskResult(task, metric, 200, True, value, value, paired)
        for task, metric in (("a_task_of_a_long_name", "acc"), ("a_task_of_a_long_name", "acc_norm"))
    ]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for width, spared, kept in ((80, "p", "+0.0300"), (60, "base", "acc_norm")):
        monkeypatch.setenv("COLUMNS", str(width))
        print_results(results)
        heading, *lines = click.unstyle(capsys.readouterr().out).splitlines()
        assert max(map(len, [heading, *lines])) <= width
        assert spared not in heading.split()
        assert kept in lines[1]
