"""The control: a random subspace in place of the principal one. A method that does no better has found nothing."""

import numpy as np

from pipeline.decompose.principal_components import RowDecomposition


def random_subspace(components: RowDecomposition, rank: int, seed: np.random.SeedSequence) -> RowDecomposition:
    """Replace the basis of `components` by `rank` random orthonormal columns, uniform over all subspaces.

    The subspace lies on the smaller side of the matrix, where it keeps rank / min(n, d) of the variance on average and
    everything at full rank. Source: Mezzadri, How to generate random matrices from the classical compact groups, 2007.
    """
    side = components.full_rank
    columns, upper = np.linalg.qr(np.random.default_rng(seed).standard_normal((side, rank)))
    basis = (columns * np.sign(np.diagonal(upper))).astype(components.centred.dtype)
    rows = components.centred
    coefficients = basis.T @ rows if len(rows) == side else rows @ basis
    energies = np.square(coefficients, dtype=np.float64).sum(axis=1 if len(rows) == side else 0)
    return RowDecomposition(rows, components.mean, basis, energies, components.total)
