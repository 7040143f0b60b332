"""Moments of what enters a model's projections: of one input, and their sums over a text; symmetric matrices packed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from native.on_disk import Sums
from native.triangle import pack, unpack
from pipeline.errors import SurgeryError

__all__ = ["Inputs", "LayerMoments", "MomentSums", "fit", "pack", "unpack"]
MOST_IN_MEMORY = 1 << 27  # bytes of sums; the others are in temporary files


@dataclass(frozen=True)
class LayerMoments:
    """Moments of an input x of a layer, such as the normalised input of its attention block, float64.

    mean: (d,), E[x]
    inputs: (d, d), E[x x^T] over all tokens, or (d,) where its diagonal is all that is known
    observed: the same with each token weighted by the attention that it receives, averaged over the heads; None where
        llama.cpp shows no attention probabilities
    rotated: how many of a head's features RoPE turns in this layer
    rope: how it pairs them, `norm` (2i, 2i + 1) or `neox` (i, i + rotated / 2)
    where: what they are of, for messages
    """

    mean: np.ndarray
    inputs: np.ndarray
    observed: np.ndarray | None
    rotated: int
    rope: str
    where: str

    @property
    def received(self) -> np.ndarray:
        """`observed`. Raises SurgeryError where it is None."""
        if self.observed is None:
            raise SurgeryError(
                f"{self.where}: llama.cpp shows no attention probabilities there, which `metric` attention rests on;"
                " use `metric` inputs"
            )
        return self.observed

    @cached_property
    def attended(self) -> np.ndarray:
        """Both second moments, each divided by its trace, added up: (d, d)."""
        return self.inputs / np.trace(self.inputs) + self.received / np.trace(self.received)


Inputs = dict[int, dict[str, dict[str, np.ndarray]]]


@dataclass
class MomentSums:
    """Sums over the first `chunks` chunks of a text, float64; see `native.capture.CapturedPart`.

    inputs: by layer, by the input's name, and by the sum's; matrices are packed: (d (d + 1) / 2,)
    products: by weight's name, the sums of squares of its inputs, (matrices * columns,), and their counts
    """

    chunks: int = 0
    inputs: Inputs = field(default_factory=dict)
    products: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _sums: Sums = field(default_factory=lambda: Sums(MOST_IN_MEMORY), init=False, repr=False)

    def add(self, chunks: int, inputs: Inputs, products: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Add sums over `chunks` more chunks, their matrices whole or packed."""
        self.chunks += chunks
        for layer, names in inputs.items():
            for name, arrays in names.items():
                mine = self.inputs.setdefault(layer, {}).setdefault(name, {})
                for what, values in arrays.items():
                    values = pack(values) if values.ndim == 2 else values
                    if what in mine and what != "rope":
                        self._sums.add(mine[what], values)
                    else:
                        mine[what] = self._sums.begin(values.astype(np.float64))
        for name, (squares, counts) in products.items():
            before, counts_before = self.products.get(name, (np.zeros_like(squares), np.zeros_like(counts)))
            self.products[name] = before + squares, counts_before + counts


def fit(mean: np.ndarray, *triangles: np.ndarray | None) -> bool:
    """Whether the triangles are of moments of what has this mean, (d,)."""
    return mean.ndim == 1 and all(t is None or t.shape == (mean.size * (mean.size + 1) // 2,) for t in triangles)
