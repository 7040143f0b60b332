"""The reconstructions that scikit-learn makes."""

import numpy as np
from sklearn.decomposition import PCA, TruncatedSVD


def reference(rows: np.ndarray, rank: int, mean: str) -> np.ndarray:
    if mean == "none":
        svd = TruncatedSVD(rank, algorithm="arpack", tol=0)
        return svd.inverse_transform(svd.fit_transform(rows))
    pca = PCA(rank, svd_solver="full")
    rebuilt = pca.inverse_transform(pca.fit_transform(rows))
    return rebuilt if mean == "keep" else rebuilt - pca.mean_
