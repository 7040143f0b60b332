"""Low-rank reconstruction as pure functions on arrays: PCA, rank rules, and the methods built from them."""
