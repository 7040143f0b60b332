"""Moments of activations, taken while llama.cpp decodes a text: what calibrated surgery and importance matrices need.

llama.cpp shows every node of its graph to a callback as it is computed. From the product with a layer's query weights
comes the normalised input `x` of its attention block, from the node `kq_soft_max` the attention probabilities `p`
(hence no flash attention). One chunk is decoded at a time, as one micro-batch, so that a layer's `x` and `p` belong
together and only those of one layer are held.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from native.errors import NativeError
from native.library import GGMLTensor
from native.model import ContextOptions, load_model, open_context
from native.observer import GraphObserver, node_values, product_inputs, require_layers

CHUNKS_BETWEEN_PARTS = 8
TOKENS_AFTER = 64  # that the covered text goes on for, so that it has no chunk less when it is tokenised again


@dataclass(frozen=True)
class CaptureStart:
    """Known before the first decode: how many chunks there are in all, the text that they cover, and the kind of RoPE.

    `covered_text` goes on for up to TOKENS_AFTER tokens more.
    `rope` is `norm` (pairs of neighbours turn together), `neox` (pairs half a head apart) or `none`.
    """

    chunks: int
    n_ctx: int
    covered_text: str
    rope: str


@dataclass(frozen=True)
class CapturedPart:
    """Sums over the `chunks` that were decoded since the part before; arrays are float64.

    attention: for each layer, `sum` (d,) and `second_moment` (d, d) of the inputs: sum x, sum x x^T over all tokens;
        `received` (d, d): sum x x^T with each token weighted by the attention that it receives, summed over the
        queries and averaged over the heads; its weights sum to the number of tokens.
    products: for each weight that is multiplied with activations, the sum of their squares, (columns,), and their count
    """

    chunks: int
    attention: dict[int, dict[str, np.ndarray]]
    products: dict[str, tuple[np.ndarray, int]]


class ActivationSums(GraphObserver):
    """Adds up a CapturedPart. `layers` maps names of query weights to layers' numbers."""

    def __init__(self, layers: Mapping[str, int]) -> None:
        super().__init__()
        self.layers = layers
        self.chunks = 0
        self.attention: dict[int, dict[str, np.ndarray]] = {}
        self.products: dict[str, tuple[np.ndarray, int]] = {}
        self._observed = frozenset(layers.values())
        self._inputs: dict[int, np.ndarray] = {}

    def take(self) -> Iterator[CapturedPart]:
        """What was added up since the last call, a layer at a time; only the last part counts the chunks."""
        while self.attention:
            layer, arrays = self.attention.popitem()
            yield CapturedPart(0, {layer: arrays}, {})
        part = CapturedPart(self.chunks, {}, self.products)
        self.chunks, self.products = 0, {}
        yield part

    def missing(self) -> set[int]:
        """The layers whose attention was not among the nodes of a decode."""
        return set(self._observed - {layer for layer, arrays in self.attention.items() if "received" in arrays})

    def recognise(self, node: GGMLTensor) -> str | int | None:
        """The weight's name for a product, the layer's number for attention probabilities."""
        if node.name.startswith(b"kq_soft_max-") and (layer := int(node.name[12:])) in self._observed:
            return layer
        return self.weight_of(node)

    def receive(self, name: str | int, node: GGMLTensor) -> None:
        if isinstance(name, int):
            self._add_attention(name, node_values(node))
        else:
            self._add_product(name, product_inputs(node))

    def _add_product(self, name: str, values: np.ndarray) -> None:
        squares, count = self.products.get(name, (np.zeros(values.shape[1]), 0))
        squares += np.einsum("nd,nd->d", values, values)
        self.products[name] = squares, count + len(values)
        if name in self.layers:
            layer = self.layers[name]
            self._inputs[layer] = values.copy()
            self._add(layer, "sum", values.sum(axis=0, dtype=np.float64))
            self._add(layer, "second_moment", values.T @ values)

    def _add_attention(self, layer: int, probabilities: np.ndarray) -> None:
        """`probabilities`: (1, heads, queries, cells of the cache)."""
        x = self._inputs.pop(layer)
        n = len(x)
        if len(probabilities) != 1 or probabilities.shape[2] != n or probabilities.shape[3] < n:
            raise NativeError(f"layer {layer}: attention of shape {probabilities.shape} is not that of {n} new tokens")
        weighted = x * np.sqrt(probabilities[0, :, :, :n].sum(axis=1).mean(axis=0))[:, None]
        self._add(layer, "received", weighted.T @ weighted)

    def _add(self, layer: int, name: str, values: np.ndarray) -> None:
        sums = self.attention.setdefault(layer, {})
        if name in sums:
            sums[name] += values
        else:
            sums[name] = values.astype(np.float64)


def capture_moments(
    path: str, text: str, layers: Mapping[str, int], *, chunks: int | None, skip: int, options: ContextOptions
) -> Generator[CaptureStart | int | CapturedPart, None, None]:
    """Decode `text` in chunks of n_ctx tokens, without the first `skip`.

    Yields a CaptureStart, then after each chunk the number of chunks done in all, and every few chunks a CapturedPart
    to be added to those before. `layers` maps the name of each layer's query weight to the layer's number. Raises
    NativeError when the model cannot be loaded or observed or computes NaN or infinity, or the text is too short.
    """
    n_ctx = options.n_ctx
    sums = ActivationSums(layers)
    with load_model(path) as model, open_context(model, options, sums.callback) as context:
        tokens = model.tokenize(text, special=False)
        if len(tokens) < n_ctx:
            raise NativeError(
                f"the text has {len(tokens)} tokens; at least {n_ctx} are needed, one chunk: use a longer text"
            )
        count = min(chunks or len(tokens) // n_ctx, len(tokens) // n_ctx)
        grid = tokens[: count * n_ctx].reshape(count, n_ctx)
        covered = b"".join(model.piece(token) for token in tokens[: grid.size + TOKENS_AFTER].tolist())
        yield CaptureStart(count, n_ctx, covered.decode("utf-8", errors="replace"), model.rope)
        for done in range(skip, count):
            sums.decode(context, grid[done])
            sums.chunks += 1
            yield done + 1
            require_layers(path, sums.missing())
            if sums.chunks == CHUNKS_BETWEEN_PARTS or done + 1 == count:
                for part in sums.take():
                    require_finite(path, part)
                    yield part


def require_finite(path: str, part: CapturedPart) -> None:
    """Raise NativeError for NaN or infinity among the sums: a broken model has no statistics."""
    sums = {f"the attention of layer {layer}": [*arrays.values()] for layer, arrays in part.attention.items()}
    sums |= {f"the inputs of {name}": [squares] for name, (squares, _) in part.products.items()}
    for what, arrays in sums.items():
        if not all(np.isfinite(values).all() for values in arrays):
            raise NativeError(f"{path}: NaN or infinity in {what}; the model is numerically broken")
