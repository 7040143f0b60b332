"""The random control: orthonormal, seeded, exact at full rank, and worse than the principal subspace."""

import numpy as np
import pytest

from pipeline.decompose.principal_components import principal_components
from pipeline.decompose.random_subspace import random_subspace

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_is_a_projection_onto_a_random_subspace(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).standard_normal(shape) * np.exp(-np.arange(shape[1]) / 10)
    principal = principal_components(rows)
    control = random_subspace(principal, 12, np.random.SeedSequence(1))
    assert np.allclose(control.basis.T @ control.basis, np.eye(12), atol=1e-12)
    lost = np.square(control.reconstruct(12) - rows).sum()
    assert control.explained(12) == pytest.approx(1 - lost / control.total)
    assert control.explained(12) < principal.explained(12)


def test_keeps_its_share_on_average_and_everything_at_full_rank() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 50))
    principal = principal_components(rows)
    kept = [random_subspace(principal, 12, np.random.SeedSequence(i)).explained(12) for i in range(200)]
    assert np.mean(kept) == pytest.approx(12 / 30, abs=4 * np.std(kept) / np.sqrt(200))
    full = random_subspace(principal, 30, np.random.SeedSequence(1))
    assert np.allclose(full.reconstruct(30), rows, atol=1e-12)


def test_same_seed_same_subspace() -> None:
    principal = principal_components(np.random.default_rng(0).standard_normal((20, 30)))
    one, two, other = (random_subspace(principal, 5, np.random.SeedSequence(s)).basis for s in (7, 7, 8))
    assert np.allclose(one, two, atol=1e-12)
    assert not np.allclose(one, other)
