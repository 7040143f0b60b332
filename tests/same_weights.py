"""Weights that were computed twice: alike, as no machine need give the same bits of a sum twice."""

from collections.abc import Iterable

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.gguf_file.reader import GGUFModel

ROUNDING = {GGMLQuantizationType.F32: 1e-5, GGMLQuantizationType.F16: 1e-3}
COARSE_ROUNDING = 2e-2  # a number at the edge of two steps of a type may fall on either side


def assert_same_weights(one: GGUFModel, other: GGUFModel, names: Iterable[str] | None = None) -> None:
    """Types and shapes are equal, and values alike."""
    assert list(one.tensors) == list(other.tensors)
    for name in one.tensors if names is None else names:
        assert one.tensors[name].type == other.tensors[name].type, name
        assert_alike(one.tensors[name].type, one.read(name), other.read(name))


def assert_alike(kind: GGMLQuantizationType, one: np.ndarray, other: np.ndarray) -> None:
    """Two arrays differ by no more than what rounding to `kind` makes of other last bits (Frobenius norms)."""
    assert one.shape == other.shape
    assert np.linalg.norm(other - one) <= ROUNDING.get(kind, COARSE_ROUNDING) * np.linalg.norm(one)
