"""Moments of activations, taken while llama.cpp decodes a text: what calibrated surgery and importance matrices need.

llama.cpp shows every node of its graph to a callback as it is computed. From the product with a layer's query weights
comes the normalised input `x` of its attention block, from the node `kq_soft_max` the attention probabilities `p`
(hence no flash attention). One chunk is decoded at a time, as one micro-batch, so that a layer's `x` and `p` belong
together and only those of one layer are held.
"""

import ctypes
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from native.errors import NativeError
from native.library import GGMLTensor, op_number
from native.model import Context, ContextOptions, load_model, open_context

CHUNKS_BETWEEN_PARTS = 8


@dataclass(frozen=True)
class CaptureStart:
    """Known before the first decode: how many chunks there are in all, the text that they cover, and the kind of RoPE.

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


@dataclass
class ActivationSums:
    """Receives graph nodes and adds up a CapturedPart. `layers` maps names of query weights to layers' numbers."""

    layers: Mapping[str, int]
    chunks: int = 0
    attention: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    products: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    error: Exception | None = None
    _inputs: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._observed = frozenset(self.layers.values())
        self._product = op_number("MUL_MAT")
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._observe)

    def take(self) -> Iterator[CapturedPart]:
        """What was added up since the last call, a layer at a time; only the last part counts the chunks."""
        while self.attention:
            layer, arrays = self.attention.popitem()
            yield CapturedPart(0, {layer: arrays}, {})
        part = CapturedPart(self.chunks, {}, self.products)
        self.chunks, self.products = 0, {}
        yield part

    def require_all(self, path: str) -> None:
        """Raise NativeError when a layer's attention was not among the nodes of a decode."""
        seen = {layer for layer, arrays in self.attention.items() if "received" in arrays}
        if missing := self._observed - seen:
            raise NativeError(f"{path}: llama.cpp computes no attention in layer {min(missing)} that can be observed")

    def _observe(self, address: int, ask: bool, user_data: Any) -> bool:
        """The callback. False on the first call means: not wanted; on the second: stop."""
        node = GGMLTensor.from_address(address)
        try:
            if node.op == self._product and (name := _weight_name(node)):
                if not ask:
                    self._add_product(name, node_values(GGMLTensor.from_address(node.src[1])))
                return True
            if node.name.startswith(b"kq_soft_max-") and (layer := int(node.name[12:])) in self._observed:
                if not ask:
                    self._add_attention(layer, node_values(node))
                return True
        except Exception as error:  # an exception must not cross C; it is raised after the decode
            self.error = error
        return False

    def _add_product(self, name: str, values: np.ndarray) -> None:
        values = values.reshape(-1, values.shape[-1])
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


def node_values(node: GGMLTensor) -> np.ndarray:
    """A view of a computed float32 node, its axes reversed as in numpy; valid only within the callback."""
    if node.type != llama_cpp.GGML_TYPE_F32 or not node.data:
        raise NativeError(f"{node.name.decode()}: not float32 in memory; it cannot be observed")
    shape, strides = tuple(node.ne)[::-1], tuple(node.nb)[::-1]
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 4
    return np.ndarray(shape, np.float32, (ctypes.c_char * span).from_address(node.data), strides=strides)


def _weight_name(product: GGMLTensor) -> str | None:
    """The name of the weight in a product of a weight with float32 activations; None for other products."""
    weight, activations = (GGMLTensor.from_address(product.src[i]) for i in range(2))
    name = weight.name
    if activations.type != llama_cpp.GGML_TYPE_F32 or not name.endswith(b".weight"):
        return None
    return str(name.decode())


def capture_moments(
    path: str, text: str, layers: Mapping[str, int], *, chunks: int | None, skip: int, options: ContextOptions
) -> Generator[CaptureStart | int | CapturedPart, None, None]:
    """Decode `text` in chunks of n_ctx tokens, without the first `skip`.

    Yields a CaptureStart, then after each chunk the number of chunks done in all, and every few chunks a CapturedPart
    to be added to those before. `layers` maps the name of each layer's query weight to the layer's number. Raises
    NativeError when the model cannot be loaded or observed, or the text is too short.
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
        covered = b"".join(model.piece(token) for token in grid.ravel().tolist())
        yield CaptureStart(count, n_ctx, covered.decode("utf-8", errors="replace"), model.rope)
        for done in range(skip, count):
            _decode_chunk(context, grid[done], sums)
            yield done + 1
            sums.require_all(path)
            if sums.chunks == CHUNKS_BETWEEN_PARTS or done + 1 == count:
                yield from sums.take()


def _decode_chunk(context: Context, tokens: np.ndarray, sums: ActivationSums) -> None:
    """Decode one chunk with all its logits asked for: else the last layer would see only the tokens that have them."""
    n = len(tokens)
    if context.model.adds_bos:
        tokens = tokens.copy()
        tokens[0] = context.model.bos
    context.clear()
    context.decode(tokens, np.arange(n), np.zeros(n, int), np.ones(n, bool))
    if sums.error:
        raise sums.error
    sums.chunks += 1
