"""Weighted decompositions: the calibrated optimum really is one, and what attention does is computed as it says."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pipeline.decompose.attention_metric import (
    average_over_turns,
    energy,
    output_moments,
    projected_moments,
    sums_of_groups,
)
from pipeline.decompose.budget import spread_budget
from pipeline.decompose.principal_components import MEANS, principal_components
from pipeline.decompose.random_subspace import random_subspace
from pipeline.decompose.weighted import Metric, ResultMetric, weigh_rows
from pipeline.gguf_file.reader import open_gguf
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.same_weights import assert_alike

pytestmark = pytest.mark.numerical

SHAPES = [(24, 40), (40, 24), (32, 32)]


def random_metric(n: int, d: int, rng: np.random.Generator) -> Metric:
    x = rng.standard_normal((200, d)) * np.geomspace(1, 0.01, d)
    blocks = [b @ b.T for b in (rng.standard_normal((n // 2, 60)) for _ in range(2))]
    return Metric(x.T @ x / 200, blocks)


def reduce(matrix: np.ndarray, metric: Metric, rank: int, mean: str = "none") -> np.ndarray:
    weighted = weigh_rows(matrix, metric, mean)
    return weighted.restore(*principal_components(weighted.rows, "none").factors(rank))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_no_perturbed_subspace_does_better(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    matrix, metric, rank = rng.standard_normal((n, d)), random_metric(n, d, rng), 7
    best = reduce(matrix, metric, rank)
    smallest = metric.error(best - matrix)
    left, _, _ = np.linalg.svd(best, full_matrices=False)
    for scale in np.geomspace(1e-4, 1, 50):
        subspace = left[:, :rank] + scale * rng.standard_normal((n, rank))
        # the best matrix with this column space under the metric: generalised least squares
        weighted_subspace, weighted = metric._left(subspace, 0), metric.weigh(matrix)
        coefficients = np.linalg.lstsq(weighted_subspace, weighted, rcond=None)[0]
        assert smallest <= np.square(weighted_subspace @ coefficients - weighted).sum() * (1 + 1e-6)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("height", [12, 24])
def test_moments_of_results_do_for_those_of_inputs(height: int, mean: str) -> None:
    """Also of rows of a low rank, such as those that were operated on before."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((24, height)) @ rng.standard_normal((height, 40))
    by_inputs = random_metric(24, 40, rng)
    by_results = ResultMetric(matrix @ by_inputs.inputs @ matrix.T, by_inputs.outputs, rows=matrix)
    assert energy(matrix, by_inputs.inputs, list(by_inputs.outputs or ())) == pytest.approx(
        energy(np.eye(24), by_results.inputs, list(by_results.outputs or ())), rel=1e-9
    )
    for rank in (3, 9):
        expected, found = (reduce(matrix, metric, rank, mean) for metric in (by_inputs, by_results))
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
        assert by_results.error(found - matrix) == pytest.approx(by_inputs.error(expected - matrix), rel=1e-3)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_diagonal_block_may_be_given_by_its_diagonal(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    matrix, inputs, weights = rng.standard_normal((n, d)), random_metric(n, d, rng).inputs, rng.exponential(1, n)
    short, whole = Metric(inputs, [weights]), Metric(inputs, [np.diag(weights)])
    assert np.allclose(reduce(matrix, short, 5), reduce(matrix, whole, 5), atol=1e-5)
    assert energy(matrix, inputs, [weights]) == pytest.approx(energy(matrix, inputs, [np.diag(weights)]))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_the_error_is_the_energy_left_out(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    matrix, metric = rng.standard_normal((n, d)), random_metric(n, d, rng)
    components = principal_components(weigh_rows(matrix, metric, "none").rows, "none")
    assert metric.error(reduce(matrix, metric, 7) - matrix) == pytest.approx(components.energies[7:].sum(), rel=1e-4)


@pytest.mark.parametrize("mean", ["keep", "none"])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_every_component_gives_the_matrix_back(n: int, d: int, mean: str) -> None:
    rng = np.random.default_rng(n)
    matrix = rng.standard_normal((n, d))
    rebuilt = reduce(matrix, random_metric(n, d, rng), min(n, d), mean)
    np.testing.assert_allclose(rebuilt, matrix, atol=1e-4)


def test_without_weights_it_is_the_plain_decomposition() -> None:
    matrix = np.random.default_rng(0).standard_normal((24, 40))
    np.testing.assert_allclose(
        reduce(matrix, Metric(np.eye(40)), 5, "keep"),
        principal_components(matrix, "keep").reconstruct(5),
        atol=1e-5,
    )


def test_inputs_that_never_occur_do_not_count() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((24, 40))
    seen = np.zeros(40)
    seen[:6] = 1
    rebuilt = reduce(matrix, Metric(np.diag(seen)), 6)
    np.testing.assert_allclose(rebuilt[:, :6], matrix[:, :6], atol=1e-4)


def test_a_random_subspace_under_a_metric_is_a_fair_control() -> None:
    rng = np.random.default_rng(3)
    matrix, metric = rng.standard_normal((24, 40)), random_metric(24, 40, rng)
    weighted = weigh_rows(matrix, metric, "none")
    components = principal_components(weighted.rows, "none")
    kept = [random_subspace(components, 6, np.random.SeedSequence(i)).explained(6) for i in range(300)]
    assert np.mean(kept) == pytest.approx(6 / 24, rel=0.05)  # no better than its share of the dimensions


def test_moments_of_projections_are_those_of_what_they_project() -> None:
    rng = np.random.default_rng(0)
    x, rows, bias = rng.standard_normal((500, 12)) + 1, rng.standard_normal((8, 12)), rng.standard_normal(8)
    y = x @ rows.T + bias
    blocks = projected_moments(rows, x.T @ x / 500, x.mean(axis=0), bias, heads=2)
    np.testing.assert_allclose(blocks[1], y[:, 4:].T @ y[:, 4:] / 500)


@pytest.mark.parametrize(("rope", "pairs"), [("norm", [(0, 1), (2, 3)]), ("neox", [(0, 2), (1, 3)])])
def test_averaging_over_turns_is_what_turning_by_every_angle_gives(rope: str, pairs: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    moment = (lambda y: y.T @ y)(rng.standard_normal((20, 6)))
    total, steps = np.zeros((6, 6)), 0
    for first in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        for second in np.linspace(0, 2 * np.pi, 12, endpoint=False):
            turn = np.eye(6)
            for (a, b), angle in zip(pairs, (first, second), strict=True):
                turn[np.ix_([a, b], [a, b])] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            total, steps = total + turn @ moment @ turn.T, steps + 1
    np.testing.assert_allclose(average_over_turns(moment, rope, 4), total / steps, atol=1e-9)
    np.testing.assert_array_equal(average_over_turns(moment, "none", 4), moment)


def test_an_error_of_v_counts_by_what_the_output_projection_makes_of_it() -> None:
    rng = np.random.default_rng(0)
    output, error = rng.standard_normal((10, 12)), rng.standard_normal(3)
    blocks = sums_of_groups(output_moments(output, heads=4), groups=2)
    seen = [output[:, 3 * head : 3 * head + 3] @ error for head in (2, 3)]
    assert error @ blocks[1] @ error == pytest.approx(sum(float(s @ s) for s in seen))


def test_a_budget_is_spent_where_it_saves_most() -> None:
    damages = [np.array([9.0, 4.0, 1.0]), np.array([8.0, 0.5, 0.1])]
    assert spread_budget(damages, [1, 1], 4) == [3, 1]
    assert spread_budget(damages, [10, 1], 23) == [2, 3]
    assert spread_budget(damages, [1, 1], 100) == [3, 3]
    assert spread_budget(damages, [1, 1], 0) == [1, 1]  # a component each, whatever the budget


def test_a_group_is_left_whole_where_that_saves_more_than_components() -> None:
    """Against every choice of ranks: what the budget is spent on minimises damage + multiplier x numbers."""
    rng = np.random.default_rng(0)
    sizes, costs, fixed, whole = (2, 4, 5), [3, 2, 4], [1, 0, 2], [6, 5, 17]
    damages = [np.sort(rng.exponential(size=m) * scale)[::-1] for m, scale in zip(sizes, (1, 3, 10), strict=True)]
    found = set()

    def numbers(ranks: tuple[int, ...]) -> int:
        each = zip(ranks, sizes, costs, fixed, whole, strict=True)
        return sum(w if rank == m else f + cost * rank for rank, m, cost, f, w in each)

    def damage(ranks: tuple[int, ...]) -> float:
        return sum(d[rank:].sum() for d, rank in zip(damages, ranks, strict=True))

    for multiplier in np.geomspace(0.01, 10, 60):
        choices = product(*(range(1, m + 1) for m in sizes))
        best = min(choices, key=lambda ranks: damage(ranks) + multiplier * numbers(ranks))
        ranks = tuple(spread_budget(damages, costs, numbers(best), fixed=fixed, whole=whole))
        assert numbers(ranks) <= numbers(best)
        assert damage(ranks) <= damage(best) + 1e-12
        found.add(tuple(rank == m for rank, m in zip(ranks, sizes, strict=True)))
    assert len(found) > 2  # from nothing whole to everything


def test_a_budget_beats_every_other_spread() -> None:
    rng = np.random.default_rng(0)
    damages = [np.sort(rng.exponential(size=5) * scale)[::-1] for scale in (1, 3, 10)]
    chosen = spread_budget(damages, [1, 1, 1], 8)
    assert sum(chosen) == 8
    left = sum(d[r:].sum() for d, r in zip(damages, chosen, strict=True))
    for a in range(1, 6):
        for b in range(1, 6):
            if 1 <= 8 - a - b <= 5:
                assert left <= sum(d[r:].sum() for d, r in zip(damages, (a, b, 8 - a - b), strict=True)) + 1e-12


def test_a_budget_is_kept_to(tiny: Path, tmp_path: Path) -> None:
    for mean in ("keep", "none"):
        plan = Plan(threshold=None, budget=0.6, mean=mean)
        report = operate(open_gguf(tiny), tmp_path / f"{mean}.gguf", plan)
        cost = max(group.rows + group.columns for group in report.groups)
        assert 0.6 * report.dense_numbers - cost <= report.factor_numbers <= 0.6 * report.dense_numbers


def test_the_whole_budget_is_the_identity(tiny: Path, tmp_path: Path) -> None:
    operate(open_gguf(tiny), tmp_path / "out.gguf", Plan(threshold=None, budget=1.0))
    assert (tmp_path / "out.gguf").read_bytes() == tiny.read_bytes()


def test_metric_weights_is_the_plain_decomposition(tiny: Path, tmp_path: Path) -> None:
    model, plan = open_gguf(tiny), Plan(targets="kv", threshold=None, rank=12, metric="weights")
    operate(model, tmp_path / "out.gguf", plan)
    written = open_gguf(tmp_path / "out.gguf")
    for layer in (0, 1):
        stack = np.vstack([model.read(f"blk.{layer}.attn_{role}.weight") for role in "kv"])
        rebuilt = principal_components(stack, "keep").reconstruct(12)
        found = np.vstack([written.read(f"blk.{layer}.attn_{role}.weight") for role in "kv"])
        assert_alike(GGMLQuantizationType.F32, found, rebuilt)
    assert not [key for key in written.metadata if key.startswith("surgery.calibration")]
