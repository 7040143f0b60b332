"""Components that layers share, against scikit-learn, a brute-force optimiser, and models made to share or not to."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.decomposition import PCA

from pipeline.decompose.cross_layer import (
    CrossLayerComponents,
    WeightedCrossLayerComponents,
    cross_layer_components,
    weighted_cross_layer_components,
)
from pipeline.decompose.principal_components import principal_components
from pipeline.decompose.shared_subspace import capture, nested_energies
from pipeline.decompose.weighted import Metric, weigh_rows
from tests.scikit_learn import reference

pytestmark = pytest.mark.numerical

Layers = list[tuple[np.ndarray, Metric]]


def fit(layers: Layers, mean: str) -> WeightedCrossLayerComponents:
    return weighted_cross_layer_components(rows_of(layers), metrics_of(layers), mean)


def random_layers(count: int, n: int, d: int, seed: int = 0, spread: float = 1.0) -> Layers:
    """Rows with a mean, and a metric of its own for each layer; `spread` says how far the inputs' moments differ."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((d, d))
    layers: Layers = []
    for _ in range(count):
        mixing = common + spread * rng.standard_normal((d, d))
        blocks = [b @ b.T for b in (rng.standard_normal((n // 2, n)) for _ in range(2))]
        rows = rng.standard_normal((n, d)) + 2 * rng.standard_normal(d)
        layers.append((rows, Metric(rng.uniform(0.1, 10) * mixing @ mixing.T, blocks)))
    return layers


def rows_of(layers: Layers) -> list[np.ndarray]:
    return [rows for rows, _ in layers]


def metrics_of(layers: Layers) -> list[Metric]:
    return [metric for _, metric in layers]


def error(components: CrossLayerComponents, layers: Layers, rank: int) -> float:
    """The objective, from the matrices that would be written."""
    return sum(
        metric.error(components.project(rows, rank, metric) - components.mean - (rows - components.removed))
        for rows, metric in layers
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", ["keep", "none", "drop"])
@pytest.mark.parametrize(("count", "n", "d"), [(3, 24, 40), (2, 10, 40), (4, 30, 20)])
def test_without_a_metric_it_is_scikit_learns_on_the_stack(count: int, n: int, d: int, mean: str, dtype: type) -> None:
    layers: list[np.ndarray] = [rows.astype(dtype) for rows in rows_of(random_layers(count, n, d))]
    components = cross_layer_components(layers, mean)
    rebuilt = np.vstack([components.project(rows, 7) for rows in layers])
    assert rebuilt.dtype == dtype
    stack = np.vstack(layers).astype(np.float64)
    assert np.linalg.norm(rebuilt - reference(stack, 7, mean)) < 1e-5 * np.linalg.norm(stack)
    if mean != "none":
        pca = PCA(0.9, svd_solver="full").fit(stack)
        assert components.rank_for(0.9) == pca.n_components_
        kept = pca.explained_variance_ratio_.sum()
        assert components.explained(pca.n_components_) == pytest.approx(kept, abs=1e-6)
    full = components.project(layers[1], components.full_rank)
    expected = layers[1] - (components.removed if mean == "drop" else 0)
    np.testing.assert_allclose(full, expected, atol=1e-4 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("mean", ["keep", "none", "drop"])
@pytest.mark.parametrize(("n", "d"), [(24, 40), (40, 24)])
def test_one_layer_is_the_ordinary_decomposition(n: int, d: int, mean: str) -> None:
    ((rows, metric),) = layers = random_layers(1, n, d)
    plain, own = principal_components(rows, mean), cross_layer_components([rows], mean)
    weighted = weigh_rows(rows, metric, mean)
    calibrated, shared = principal_components(weighted.rows, "none"), fit(layers, mean)
    for rank in (1, 7, min(n, d)):
        np.testing.assert_allclose(own.project(rows, rank), plain.reconstruct(rank), atol=1e-8)
        expected = weighted.restore(*calibrated.factors(rank))
        np.testing.assert_allclose(shared.project(rows, rank, metric), expected, atol=1e-4)
        np.testing.assert_allclose(shared.refine(rank).project(rows, rank, metric), expected, atol=1e-4)
        assert shared.explained(rank) == pytest.approx(calibrated.explained(rank), abs=1e-6)


def test_equal_layers_need_the_rank_of_one() -> None:
    rows, metric = random_layers(1, 24, 40)[0]
    one, three = cross_layer_components([rows], "none"), cross_layer_components([rows] * 3, "none")
    assert [one.rank_for(t) for t in (0.5, 0.9, 0.99)] == [three.rank_for(t) for t in (0.5, 0.9, 0.99)]
    np.testing.assert_allclose(three.project(rows, 5), one.project(rows, 5), atol=1e-8)
    one, three = (fit([(rows, metric)] * count, "none") for count in (1, 3))
    np.testing.assert_allclose(three.project(rows, 5, metric), one.project(rows, 5, metric), atol=1e-4)
    layers = [(rows, metric)] * 3
    assert error(three, layers, 5) == pytest.approx(least_error(layers, three.removed, 5), rel=1e-4)


def test_layers_whose_inputs_differ_only_in_size_have_a_closed_form() -> None:
    """By the change of variables to whitened inputs it is PCA of the stacked weighted rows."""
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((20, 20))
    moment, sizes = mixing @ mixing.T, (0.1, 1.0, 30.0)
    layers = [(rng.standard_normal((8, 20)), Metric(size * moment, [np.eye(8) / size])) for size in sizes]
    shared = fit(layers, "none")
    stack = np.vstack([metric.weigh(rows) for rows, metric in layers])
    left = np.square(np.linalg.svd(stack, compute_uv=False)[6:]).sum()
    assert error(shared, layers, 6) == pytest.approx(left, rel=1e-3)
    assert error(shared.refine(6), layers, 6) == pytest.approx(left, rel=1e-3)


def least_error(layers: Layers, removed: np.ndarray, rank: int) -> float:
    """The objective with `rank` directions for each layer alone: no shared directions leave less."""
    singular = (np.linalg.svd(metric.weigh(rows - removed), compute_uv=False) for rows, metric in layers)
    return sum(float(np.square(values[rank:]).sum()) for values in singular)


def brute_force(layers: Layers, rank: int, starts: int) -> float:
    """The least objective that a general optimiser finds over directions and coefficients, from random starts.

    It is given nothing of the method: variables are V and every B_l, gradients are those of the plain objective.
    """
    d = layers[0][0].shape[1]
    heights = [len(rows) for rows, _ in layers]
    weights = [np.linalg.cholesky(_outputs(metric)).T for _, metric in layers]
    factors = [metric.input_factor for _, metric in layers]

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        shared = x[: d * rank].reshape(d, rank)
        gradient, value, start = np.zeros_like(x), 0.0, d * rank
        for (rows, _), height, left, right in zip(layers, heights, weights, factors, strict=True):
            part = slice(start, start + height * rank)
            own = x[part].reshape(height, rank)
            residual = left @ (rows - own @ shared.T) @ right
            value += float(np.square(residual).sum())
            outer = -2 * left.T @ residual @ right.T
            gradient[part] = (outer @ shared).ravel()
            gradient[: d * rank] += (outer.T @ own).ravel()
            start = part.stop
        return value, gradient

    size = d * rank + sum(heights) * rank
    best = np.inf
    for seed in range(starts):
        guess = np.random.default_rng(seed).standard_normal(size) / 3
        found = minimize(objective, guess, jac=True, method="L-BFGS-B", options={"maxiter": 20000, "maxfun": 40000})
        best = min(best, float(found.fun))
    return best


def _outputs(metric: Metric) -> np.ndarray:
    blocks = metric.outputs or ()
    whole = np.zeros((sum(map(len, blocks)),) * 2)
    start = 0
    for block in blocks:
        part = slice(start, start + len(block))
        whole[part, part] = block
        start = part.stop
    return whole + 1e-9 * np.trace(whole) * np.eye(len(whole))


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize(("spread", "slack"), [(0.3, 1.01), (1.0, 1.25)])
def test_a_general_optimiser_hardly_does_better(spread: float, slack: float, rank: int) -> None:
    """Where inputs differ moderately it finds the same optimum; where they have little in common, a local one."""
    ratios = []
    for seed in range(4):
        layers = random_layers(3, 6, 8, seed, spread)
        shared = fit(layers, "none")
        found, best = error(shared.refine(rank), layers, rank), brute_force(layers, rank, starts=8)
        ratios.append(found / best)
        assert found <= error(shared, layers, rank) * (1 + 1e-9)
        assert found >= least_error(layers, shared.removed, rank) * (1 - 1e-6)
    assert max(ratios) < slack


def test_refining_helps_where_inputs_differ_and_says_what_it_keeps() -> None:
    layers = random_layers(4, 20, 30, seed=7, spread=2.0)
    shared = fit(layers, "keep")
    refined = shared.refine(8)
    assert error(refined, layers, 8) < 0.98 * error(shared, layers, 8)
    for components in (shared, refined):
        left = components.total * (1 - components.explained(8))
        assert error(components, layers, 8) == pytest.approx(left, rel=1e-3)
    np.testing.assert_allclose(refined.directions.T @ refined.directions, np.eye(8), atol=1e-10)


def test_coefficients_are_the_best_for_the_directions() -> None:
    """B = A C V (V^T C V)^-1, which no change of a layer's coefficients improves on."""
    layers = random_layers(2, 10, 16)
    shared = fit(layers, "none").refine(5)
    rows, metric = layers[1]
    moment = metric.input_factor @ metric.input_factor.T
    kept = shared.directions[:, :5]
    best = rows @ moment @ kept @ np.linalg.inv(kept.T @ moment @ kept) @ kept.T
    np.testing.assert_allclose(shared.project(rows, 5, metric), best, rtol=1e-3, atol=1e-4)


def test_a_planted_subspace_is_recovered() -> None:
    rng = np.random.default_rng(0)
    d, rank = 40, 6
    planted = np.linalg.qr(rng.standard_normal((d, rank)))[0]
    layers = [
        (rng.standard_normal((20, rank)) @ planted.T, metric) for _, metric in random_layers(5, 20, d, spread=1.5)
    ]
    for components in (
        cross_layer_components(rows_of(layers), "none"),
        fit(layers, "none"),
        fit(layers, "none").refine(rank),
    ):
        overlap = np.square(planted.T @ components.directions[:, :rank]).sum() / rank
        assert overlap == pytest.approx(1, abs=1e-6)
        assert components.rank_for(1 - 1e-6) == rank


def test_layers_that_share_nothing_need_the_ranks_of_all() -> None:
    rng = np.random.default_rng(0)
    d, rank, count = 40, 6, 4
    directions = np.linalg.qr(rng.standard_normal((d, rank * count)))[0]
    layers = [
        (rng.standard_normal((20, rank)) @ directions[:, rank * i : rank * (i + 1)].T, Metric(np.eye(d), [np.eye(20)]))
        for i in range(count)
    ]
    plain, weighted = cross_layer_components(rows_of(layers), "none"), fit(layers, "none")
    for components in (plain, weighted):
        assert components.rank_for(1 - 1e-6) == rank * count
        assert components.explained(rank) < 0.5  # where one layer alone would keep everything
    assert least_error(layers, plain.removed, rank) < 1e-9 * plain.total


def test_the_gradient_is_that_of_the_captured_energy() -> None:
    terms = fit(random_layers(3, 8, 12, spread=2.0), "none").terms
    rng = np.random.default_rng(1)
    basis, direction = np.linalg.qr(rng.standard_normal((12, 4)))[0], rng.standard_normal((12, 4))
    here = capture(basis, terms)
    ahead, behind = (capture(np.linalg.qr(basis + h * direction)[0], terms).energy for h in (1e-5, -1e-5))
    assert np.sum(2 * here.gradient * direction) == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)
    assert nested_energies(basis, terms).sum() == pytest.approx(here.energy)
